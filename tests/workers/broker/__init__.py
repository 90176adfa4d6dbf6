"""Tests of workers/broker/."""

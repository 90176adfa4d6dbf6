"""Tests of workers/flower/."""

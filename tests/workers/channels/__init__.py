"""Tests of workers/channels."""

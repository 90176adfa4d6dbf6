"""Tests of workers/upstream/."""

"""Tests of workers/runner/."""

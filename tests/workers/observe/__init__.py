"""Tests of workers/observe/."""

"""Tests of workers/pacer/."""

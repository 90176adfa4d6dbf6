"""Tests of workers/results/."""

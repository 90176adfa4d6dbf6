"""Tests of workers/limiter/."""

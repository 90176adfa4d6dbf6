"""Tests of workers/answers/."""

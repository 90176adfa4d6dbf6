"""Tests of models/jobs/."""

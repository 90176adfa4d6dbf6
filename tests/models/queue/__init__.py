"""Tests of models/queue/."""

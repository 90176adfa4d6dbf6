"""Tests of models/platform/."""

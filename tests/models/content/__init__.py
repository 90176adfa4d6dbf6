"""Tests of models/content/."""

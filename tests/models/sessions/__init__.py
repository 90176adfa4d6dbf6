"""Tests of models/sessions/."""

"""Tests of api/sessions/."""

"""Tests of api/submit/."""

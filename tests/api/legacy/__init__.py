"""Tests of api/legacy/."""

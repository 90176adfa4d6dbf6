"""Tests of api/waiting/."""

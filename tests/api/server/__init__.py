"""Tests of api/server/."""

"""Tests of api/access/."""

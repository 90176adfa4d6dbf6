"""Tests of api/stored/."""

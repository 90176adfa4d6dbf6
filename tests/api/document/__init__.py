"""Tests of api/document/."""

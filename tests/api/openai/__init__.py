"""Tests of api/openai/."""

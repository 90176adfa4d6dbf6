"""Tests with unmodified OpenAI client programs against a complete nowserving stack."""

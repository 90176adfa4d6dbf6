"""Tests of models/database/."""

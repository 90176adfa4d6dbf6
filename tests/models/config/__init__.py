"""Tests of models/config/."""

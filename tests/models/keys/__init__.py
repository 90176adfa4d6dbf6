"""Tests of models/keys/."""

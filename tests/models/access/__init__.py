"""Tests of models/access/."""

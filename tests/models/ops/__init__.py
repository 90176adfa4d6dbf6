"""Tests of models/ops/."""

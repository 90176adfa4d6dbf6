"""Tests of api/ops/."""

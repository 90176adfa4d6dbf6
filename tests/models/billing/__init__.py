"""Tests of models/billing/."""

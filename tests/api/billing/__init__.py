"""Tests of api/billing/."""

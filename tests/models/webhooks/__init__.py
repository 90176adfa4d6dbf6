"""Tests of models/webhooks/."""

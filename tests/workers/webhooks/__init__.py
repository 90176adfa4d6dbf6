"""Tests of workers/webhooks/."""

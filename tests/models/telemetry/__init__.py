"""Tests of models/telemetry/."""

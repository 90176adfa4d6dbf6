"""Logs, Prometheus metrics and OpenTelemetry traces.

This package defines what is recorded and how it leaves the process; the places that record are elsewhere.
"""

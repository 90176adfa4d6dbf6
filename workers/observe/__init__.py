"""Observability of workers and the pacer: counters, the metrics server, and the log line and span of an attempt.

The definitions of metrics and spans are in models/telemetry.
"""

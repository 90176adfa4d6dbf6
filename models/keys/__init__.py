"""Callers' keys, and the pools and credentials that their jobs are sent with.

Also what is known of each credential: its limits, its models, and whether it is parked.
"""

"""Operator reports and actions: metrics, pauses, priorities, limits, bulk actions, retention and key rotation.

This package may import every other package of models.
"""

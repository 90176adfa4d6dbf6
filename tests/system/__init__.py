"""Tests of the whole system: a real API, pacer and workers against a fake OpenAI.

Tests of one module are in the folder that mirrors it.
"""

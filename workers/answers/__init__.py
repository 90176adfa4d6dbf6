"""Interprets an upstream's answer: events, chat chunks, tool calls, errors, rate-limit headers, and the retry policy.

These modules are pure: they neither call an upstream nor write to a store.
"""

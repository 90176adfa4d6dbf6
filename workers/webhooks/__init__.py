"""Sends one webhook delivery: sign, POST through a guard against SSRF, record the outcome.

Which delivery is due is decided in models/webhooks.
"""

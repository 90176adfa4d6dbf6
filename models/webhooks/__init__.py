"""Webhook endpoints, the outbox, and the state machine of a delivery with its retry schedule.

The HTTP call itself is in workers/webhooks.
"""

"""The routes of webhook endpoints and deliveries.

The deliveries themselves are sent by workers/webhooks.
"""

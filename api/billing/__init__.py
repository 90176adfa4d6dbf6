"""The routes of money: our balance and usage, and OpenAI's former billing routes.

They read models/billing.
"""

"""Sessions and their messages, their deletion, and stored chat completions.

The order of turns in a conversation is in models/queue.
"""

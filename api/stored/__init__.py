"""OpenAI's routes of stored chat completions.

A completion is stored if its request has `"store": true`.
"""

"""OpenAI's routes of stored chat completions.

A completion is stored when its request said `"store": true`.
"""

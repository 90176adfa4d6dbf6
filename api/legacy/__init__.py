"""The legacy `/pro` API, which older bots still use.

New clients use the routes of api/openai and api/jobs.
"""

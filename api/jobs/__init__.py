"""The routes of jobs: submit, read, wait, cancel, events, artifacts.

One job is one queued request to OpenAI.
"""

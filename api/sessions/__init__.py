"""The routes of sessions and their attachments.

A session is a conversation whose turns are remembered.
"""

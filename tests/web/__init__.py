"""Tests of the chat page in web/."""

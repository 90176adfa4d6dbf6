"""Promises in plain words, kept against real servers on free ports of 127.0.0.1."""

"""Tests of the project itself: code rules, pinned versions, files that ship.

Also the tests of tools that only tests use.
"""

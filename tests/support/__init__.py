"""Helpers of tests that enqueue jobs, move them through their states and read them.

Servers for tests are in tests/support/servers, programs in tests/support/programs.
"""

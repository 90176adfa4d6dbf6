"""Short ways for tests to enqueue, move and read jobs.

Servers for tests are in tests/support/servers, programs in tests/support/programs.
"""

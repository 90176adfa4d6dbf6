"""The rate limiter: one Lua script in Redis that charges all limits of a credential at once, and its client.

Its state is lost with Redis and rebuilt from PostgreSQL.
"""

"""Redis pub/sub notifications and the Redis streams that carry tokens.

The API imports this package of workers and no other.
"""

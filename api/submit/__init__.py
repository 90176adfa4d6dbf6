"""From a request to a stored job: parse, check, estimate, enqueue.

The views of every kind of job call this package.
"""

"""From a request to a stored job: parse, validate, estimate, enqueue.

The views of every kind of job call this package.
"""

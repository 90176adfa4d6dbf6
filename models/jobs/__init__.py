"""The life of a job: its state machine, its idempotency key, the clients that wait for it, and how it is shown.

Also the heartbeats of the processes that serve jobs.
"""

"""Jobs: the state machine (states.py), idempotency keys, waiters, and the job object.

Also the heartbeats of the API and worker processes.
"""

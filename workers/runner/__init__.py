"""Runs one job: claim, build the request, call, publish the stream, write the outcome, learn from the answer.

Also what a worker process does beside its jobs: leases, heartbeat, copies of model lists.
"""

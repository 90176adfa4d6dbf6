"""Runs one job: claims it, builds the request, calls the upstream, publishes the stream, classifies the answer, stores the feedback.

Also the other threads of a worker process: leases, heartbeat, copies of model lists.
"""

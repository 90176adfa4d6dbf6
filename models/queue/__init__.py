"""The queue: enqueue, fair order, positions, caps, and the statements with which the pacer admits jobs.

Conversations are here too, because they decide which of their turns may be enqueued.
"""

"""The queue: enqueueing in fair order, positions, caps, and the statements with which the pacer admits jobs.

Also conversations, because they decide when their turns are enqueued.
"""

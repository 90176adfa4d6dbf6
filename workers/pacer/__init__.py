"""The pacer: admits jobs in fair order within the limits, and repairs state that crashed processes left behind.

Start it with `python -m workers.pacer`; any number of pacers may run.
"""

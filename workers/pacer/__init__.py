"""The pacer: admits jobs in fair order as limits allow, and repairs what crashed processes left behind.

Start it with `python -m workers.pacer`; any number may run.
"""

"""The programs of nowserving as tests run them: as real processes, forked, or step by step in this process.

Each stops with its test.
"""

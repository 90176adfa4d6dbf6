"""The suites of benchmarks, one module each: `python -m bench --only NAME` runs one.

Each has a TITLE and `run(stack, short=…)`, which returns figures.
"""

"""Tools of the benchmarks: the measured stack, load, waiting clients, CPU figures, plots and the report.

This package imports no suite.
"""

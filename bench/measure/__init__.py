"""What every benchmark needs: the measured stack, load, waiting clients, CPU figures, plots and the report.

Nothing here knows what a suite measures.
"""

"""What is true: tables, their compare-and-sets, settings, errors, prices. Imports nothing else of ours."""

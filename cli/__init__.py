"""The command line `nowserving`: starts the parts of the stack, and holds the commands of operators and callers.

Operators' commands use PostgreSQL directly; callers' commands use HTTP.
"""

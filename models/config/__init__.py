"""Settings: every value that an operator can change, read once from the environment and checked.

Also the parsers of settings that have a syntax of their own (URLs, header lists, price files).
"""

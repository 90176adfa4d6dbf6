"""The job API played against a plain picture of what must be true: see tests/test_api_machine.py."""

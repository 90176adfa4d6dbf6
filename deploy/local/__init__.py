"""The whole stack on one machine: embedded servers, services as child processes, and their supervisor.

`nowserving up` starts it.
"""

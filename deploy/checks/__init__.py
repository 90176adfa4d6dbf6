"""Checks of the files that no test runs: Compose, Dockerfile, alerts, pinned versions, the web build.

`make lint` and `make audit` run them.
"""

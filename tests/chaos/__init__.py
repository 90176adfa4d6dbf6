"""Fault harness: a full stack of real processes, clients that keep a journal, seeded faults, and checks of the result."""

"""The fault harness: a whole stack of real processes, clients that keep a journal, faults by seed, and a check of it all."""

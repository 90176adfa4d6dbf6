"""Model-based tests: a Hypothesis state machine, its reference model, scenarios, and mutants that prove that the tests see faults.

Property tests of jobs and money are here too.
"""

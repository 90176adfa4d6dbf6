"""Measures what the README claims, on real servers with everything durable: `make bench`, or python -m bench [--only NAME] [--short]."""

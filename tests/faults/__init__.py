"""Tests of our processes and servers that die, freeze or lose data at the worst moment."""

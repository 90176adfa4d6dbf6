"""Tests of the benchmarks: their arithmetic, their pictures, and the peers that they compare with.

The benchmarks themselves are in bench/.
"""

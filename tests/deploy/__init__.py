"""Tests of deploy/: the local stack, Kubernetes manifests, monitoring files.

No Docker engine is needed.
"""

"""The stages of one pacer step, in order: claim, pick, reserve, unservable, commit, dispatch.

Each stage reads and completes the step's Batch; workers/pacer/step.py calls them.
"""

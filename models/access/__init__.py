"""Access control: operators and their tokens, the audit log, client addresses, host names and the limit on wrong tokens.

Keys of callers are in models/keys.
"""

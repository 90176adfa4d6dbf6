"""Money: prices, the usage of a call, the ledger, budgets and the statement that a key's owner reads.

Amounts are whole micro-USD.
"""

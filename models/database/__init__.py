"""The connection pool to PostgreSQL, transactions, the tables and their migrations.

Statements stand with their subject; this package only runs them.
"""

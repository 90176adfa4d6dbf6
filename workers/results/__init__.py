"""The end of an attempt: its record, the answer's usage, the transaction that stores it, and the spool for outages of Postgres."""

"""The tables, one module per subject: the source of migrations and of the page that describes them. States change elsewhere.

Importing this package registers every table in `metadata`.
"""

from __future__ import annotations

from models.database.tables import billing, credentials, jobs, operators, queue, results, webhooks
from models.database.tables.columns import metadata

__all__ = ["billing", "credentials", "jobs", "metadata", "operators", "queue", "results", "webhooks"]

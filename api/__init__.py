"""The HTTP API. It imports models and, of workers, only workers.channels."""

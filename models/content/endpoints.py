"""The upstream's routes that jobs can call, by the names stored with jobs."""

from __future__ import annotations

CHAT = "/v1/chat/completions"
IMAGES = "/v1/images/generations"
EDITS = "/v1/images/edits"
EMBEDDINGS = "/v1/embeddings"
MODERATIONS = "/v1/moderations"
MODELS = "/v1/models"
# The routes that the upstream charges for.
PAID = frozenset({CHAT, IMAGES, EDITS, EMBEDDINGS})


def http_method(endpoint: str) -> str:
    """The HTTP method: GET for the list of models and a single model, POST for every other route."""
    return "GET" if endpoint == MODELS or endpoint.startswith(f"{MODELS}/") else "POST"

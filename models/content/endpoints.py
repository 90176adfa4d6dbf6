"""The upstream's routes that wait in line, by the names that jobs carry."""

from __future__ import annotations

CHAT = "/v1/chat/completions"
IMAGES = "/v1/images/generations"
EDITS = "/v1/images/edits"
EMBEDDINGS = "/v1/embeddings"
MODERATIONS = "/v1/moderations"
MODELS = "/v1/models"
# What the upstream takes money for.
PAID = frozenset({CHAT, IMAGES, EDITS, EMBEDDINGS})


def http_method(endpoint: str) -> str:
    """How this route is called: the list of models and each of them are read, everything else is posted."""
    return "GET" if endpoint == MODELS or endpoint.startswith(f"{MODELS}/") else "POST"

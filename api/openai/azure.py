"""Azure's routes of the OpenAI API: the deployment in the path is the model. `?api-version` is optional and ignored."""

from __future__ import annotations

from flask import Blueprint, Response

from api.openai import views as openai_views
from models.content.endpoints import CHAT, EDITS, EMBEDDINGS, IMAGES

routes = Blueprint("azure", __name__)


@routes.post("/deployments/<path:deployment>/chat/completions")
def chat(deployment: str) -> Response:
    """Creates a chat completion, whole or as a stream."""
    return openai_views.serve(CHAT, model=deployment)


@routes.post("/deployments/<path:deployment>/embeddings")
def embeddings(deployment: str) -> Response:
    """Creates embeddings."""
    return openai_views.serve(EMBEDDINGS, model=deployment)


@routes.post("/deployments/<path:deployment>/images/generations")
def images(deployment: str) -> Response:
    """Generates images from a prompt."""
    return openai_views.serve(IMAGES, model=deployment)


@routes.post("/deployments/<path:deployment>/images/edits")
def edits(deployment: str) -> Response:
    """Edits images."""
    return openai_views.serve(EDITS, model=deployment)

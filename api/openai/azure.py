"""Azure's addresses of the OpenAI API: the deployment in the path is the model. `?api-version` may be there, and is not needed."""

from __future__ import annotations

from flask import Blueprint, Response

from api.openai import views as openai_views
from models.content.endpoints import CHAT, EDITS, EMBEDDINGS, IMAGES

routes = Blueprint("azure", __name__)


@routes.post("/deployments/<path:deployment>/chat/completions")
def chat(deployment: str) -> Response:
    """A chat completion, whole or as a stream."""
    return openai_views.serve(CHAT, model=deployment)


@routes.post("/deployments/<path:deployment>/embeddings")
def embeddings(deployment: str) -> Response:
    """Vectors for texts."""
    return openai_views.serve(EMBEDDINGS, model=deployment)


@routes.post("/deployments/<path:deployment>/images/generations")
def images(deployment: str) -> Response:
    """Pictures from a prompt."""
    return openai_views.serve(IMAGES, model=deployment)


@routes.post("/deployments/<path:deployment>/images/edits")
def edits(deployment: str) -> Response:
    """Pictures from pictures and a prompt."""
    return openai_views.serve(EDITS, model=deployment)

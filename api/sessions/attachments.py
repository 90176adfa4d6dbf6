"""Uploads files to a session. The upload is a form; each file is typed by its content and stored unchanged."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from flask import Blueprint, Response, request

from api.access import auth
from api.http import multipart, render, request_body
from api.http.multipart import Part
from api.sessions import filetypes
from api.submit import image_form, images
from models.config.settings import settings
from models.content import attachments
from models.content.attachments import File
from models.database import db
from models.platform.errors import Invalid, TooLarge, UnsupportedMedia
from models.sessions import sessions

routes = Blueprint("attachments", __name__)

MAX_NAME_CHARS = 200
# Browsers do not escape file names, so a backslash in one is literal, although RFC 7578 parsing would remove it.
_PATH = re.compile(rb'\\(?!")')
_TYPE = re.compile(rb"^content-type:[ \t]*([^;\r\n]*)", re.IGNORECASE | re.MULTILINE)


@routes.post("/sessions/<name>/attachments")
def attach(name: str) -> Response:
    """Stores the files and returns 201; a turn can then name their ids."""
    caller, name = auth.authenticate(request), sessions.parse_id(name)
    with db.begin() as transaction:
        sessions.get(transaction, caller.id, name)
    files = _files()
    with db.begin() as transaction:
        number = sessions.touch(transaction, caller.id, name)
        rows = [attachments.store(transaction, number, file) for file in files]
    shown = [attachments.attachment_view(row, now=time.time(), origin=images.origin(request)) for row in rows]
    return render.json_response({"object": "list", "data": shown}, 201)


def _files() -> Sequence[File]:
    """Returns the files of the form. Raises Invalid and its subclasses."""
    boundary = request.mimetype_params.get("boundary", "")
    if request.mimetype != image_form.FORM or not image_form.BOUNDARY.fullmatch(boundary):
        raise UnsupportedMedia(f"Send the file as `Content-Type: {image_form.FORM}; boundary=…`, in a part named `file`.")
    parts = multipart.split(request_body.read_bytes(request, limit=settings().max_upload_bytes), boundary)
    files = [_file(part) for part in parts if part.filename is not None]
    if not files:
        raise Invalid("`file` is required: at least one part of the form with a `filename`.", param="file")
    return files


def _file(part: Part) -> File:
    name = (part.filename or "").strip()
    if _PATH.search(part.head):
        raise Invalid("The file name is a path. Send its last part only.", param="file", code="invalid_form")
    if not name.strip(".") or len(name) > MAX_NAME_CHARS:
        raise Invalid(f"A file name has 1 to {MAX_NAME_CHARS} characters and is not dots alone.", param="file", code="invalid_form")
    if len(part.content) > (limit := settings().max_attachment_bytes):
        raise TooLarge(f"`{name}` is larger than {limit} bytes, the limit of an attachment. Send a smaller file.", param="file")
    match = _TYPE.search(part.head)
    declared = match[1].strip().decode("ascii", "replace").lower() if match else ""
    return File(name, filetypes.recognise(part.content, name=name, declared=declared), part.content)

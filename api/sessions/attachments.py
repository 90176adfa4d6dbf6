"""Files for the turns of a session: taken as a form, typed by their content, stored as they are."""

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

NAME_MOST = 200
# Browsers do not escape what stands in a name, so a backslash is one, although reading it as RFC 7578 has it takes it away.
_PATH = re.compile(rb'\\(?!")')
_TYPE = re.compile(rb"^content-type:[ \t]*([^;\r\n]*)", re.IGNORECASE | re.MULTILINE)


@routes.post("/sessions/<name>/attachments")
def attach(name: str) -> Response:
    """201: the files are kept, and a turn can name their ids."""
    caller, name = auth.caller(request), sessions.parse_id(name)
    with db.begin() as opened:
        sessions.get(opened, caller.id, name)
    files = _files()
    with db.begin() as opened:
        number = sessions.touch(opened, caller.id, name)
        rows = [attachments.store(opened, number, one) for one in files]
    shown = [attachments.show(row, now=time.time(), origin=images.origin(request)) for row in rows]
    return render.answer({"object": "list", "data": shown}, 201)


def _files() -> Sequence[File]:
    """The files of the form that was sent. Raises Invalid and its kinds."""
    boundary = request.mimetype_params.get("boundary", "")
    if request.mimetype != image_form.FORM or not image_form.BOUNDARY.fullmatch(boundary):
        raise UnsupportedMedia(f"Send the file as `Content-Type: {image_form.FORM}; boundary=…`, in a part named `file`.")
    parts = multipart.split(request_body.receive(request, most=settings().max_upload_bytes), boundary)
    found = [_file(part) for part in parts if part.filename is not None]
    if not found:
        raise Invalid("`file` is required: at least one part of the form with a `filename`.", param="file")
    return found


def _file(part: Part) -> File:
    name = (part.filename or "").strip()
    if _PATH.search(part.head):
        raise Invalid("The name of a file is a path. Send its last part only.", param="file", code="invalid_form")
    if not name.strip(".") or len(name) > NAME_MOST:
        raise Invalid(f"The name of a file has 1 to {NAME_MOST} characters and is not dots alone.", param="file", code="invalid_form")
    if len(part.content) > (most := settings().max_attachment_bytes):
        raise TooLarge(f"`{name}` is larger than the {most} bytes that an attachment may have. Send a smaller one.", param="file")
    declared = _TYPE.search(part.head)
    said = declared[1].strip().decode("ascii", "replace").lower() if declared else ""
    return File(name, filetypes.recognise(part.content, name=name, declared=said), part.content)

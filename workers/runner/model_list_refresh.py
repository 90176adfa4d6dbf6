"""Refreshes copies of upstreams' model lists outside the queue: without a job, a reservation or a charge.

Every worker process subscribes to wake-ups of the API, and one process claims each requested copy in Postgres. The result neither parks
nor pauses a credential, and no limit is learned from it. A good list only makes the probe of a refused key due at once.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from models.content.endpoints import MODELS
from models.database import db
from models.keys import model_lists, parking
from models.platform import json_reading
from models.platform.errors import Unavailable
from workers.answers import retry_policy, upstream_error
from workers.answers.upstream_error import ErrorObject
from workers.channels import notify
from workers.upstream import request
from workers.upstream.call import CallControl
from workers.upstream.client import send
from workers.upstream.exchange import Answer, Lost, NotSent, TimedOut

log = logging.getLogger(__name__)

# A refresh that takes longer has failed. Shorter than model_lists.CLAIM_S.
TIMEOUT_S = 10.0
# Concurrent refreshes of one process: a few hanging upstreams do not delay the others.
MAX_THREADS = 8
BAD_GATEWAY = 502


class Refusal(Exception):
    """The upstream returned no model list. status: the upstream's, or 502 without a usable answer."""

    def __init__(self, status: int, error: ErrorObject) -> None:
        super().__init__(str(error.get("message")))
        self.status, self.error = status, error


class ModelListRefresher:
    """The refresh threads of one process."""

    def __init__(self) -> None:
        self._running = 0
        self._lock = threading.Lock()

    def listen(self, stop: threading.Event) -> None:
        """Refreshes all requested copies at each wake-up, until `stop`."""
        notify.subscribe(notify.MODELS_CHANNEL, lambda _: self.start_refresh(), stop)

    def start_refresh(self) -> None:
        """Starts one more refresh thread, up to MAX_THREADS. Returns at once."""
        with self._lock:
            if self._running >= MAX_THREADS:
                return
            self._running += 1
        threading.Thread(target=self._work, name="model list", daemon=True).start()

    def _work(self) -> None:
        try:
            while refresh_next():
                pass
        except Unavailable:
            log.warning("model lists not refreshed: Postgres is unavailable")
        except Exception:
            # A border: the claim expires, and the next wake-up starts another thread.
            log.exception("a model list could not be refreshed")
        finally:
            with self._lock:
                self._running -= 1


def refresh_next() -> bool:
    """Claims and refreshes the copy that was requested first; False: none is requested. Raises Unavailable."""
    with db.begin() as session:
        row = model_lists.claim_refresh(session)
    if row is None:
        return False
    try:
        body = _fetch(row)
    except Refusal as refusal:
        fields = {"credential_id": row.credential_id, "status": refusal.status, "code": refusal.error.get("code")}
        log.warning("model list not refreshed: the last copy is kept", extra=fields)
        with db.begin() as session:
            model_lists.store_failure(session, row, status=refusal.status, error=refusal.error)
    else:
        with db.begin() as session:
            model_lists.store_list(session, row, body=body)
            parking.make_probe_due(session, row.credential_id, reason=retry_policy.WRONG_KEY)
    return True


def _fetch(row: Any) -> bytes:
    """The upstream's model list. Raises Refusal."""
    fields = {"endpoint": MODELS, "headers": json.loads(row.account or "{}"), "dispatch_id": uuid4(), "model": "", "failures": 0}
    try:
        answer = send(
            request.build(SimpleNamespace(**row._asdict(), **fields), b""), call=CallControl(deadline=time.monotonic() + TIMEOUT_S)
        )
    except TimedOut as error:
        message = f"The upstream did not give its list of models within {TIMEOUT_S:g} s. Ask again later."
        raise Refusal(BAD_GATEWAY, retry_policy.own_error(message, "upstream_timeout")) from error
    except (NotSent, Lost) as error:
        message = f"The upstream did not give its list of models: {error}. Ask again later, or ask the operator to check the upstream."
        raise Refusal(BAD_GATEWAY, retry_policy.own_error(message, "upstream_unreachable")) from error
    return _list_of(answer)


def _list_of(answer: Answer) -> bytes:
    """The bytes of the list; a bare array, as some servers send it, is wrapped in OpenAI's shape. Raises Refusal."""
    if not 200 <= answer.status < 300:
        raise Refusal(answer.status, upstream_error.error_of(answer.status, answer.headers, answer.body))
    value = json_reading.parse_json(answer.body)
    if isinstance(value, dict) and upstream_error.is_error(value):
        raise Refusal(upstream_error.status_of(value), upstream_error.error_of(BAD_GATEWAY, answer.headers, answer.body))
    body = json.dumps({"object": "list", "data": value}).encode() if isinstance(value, list) else answer.body
    if len(body) > model_lists.MAX_LIST_BYTES:
        message = f"The upstream's list of models is larger than {model_lists.MAX_LIST_BYTES >> 20} MiB. Use model names without it."
        raise Refusal(BAD_GATEWAY, retry_policy.own_error(message, "upstream_answer_too_large"))
    try:
        list(model_lists.parse_entries(body))
    except ValueError as error:
        message = "The upstream's answer is no list of models. Ask the operator to check the upstream's address (base URL)."
        raise Refusal(BAD_GATEWAY, retry_policy.own_error(message, "upstream_invalid_response")) from error
    return body

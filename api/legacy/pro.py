"""The legacy `/pro` API (openai-proxy.com, April 2023), which bots and mini-programs still speak: a question, a session, an answer.

Everything, errors too, is told in an envelope over HTTP 200: the HTTP clients of its users throw on 4xx and lose the text. A thin face:
a question is a job in a conversation, and nothing here knows more of either.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Response, request

from api.access import auth
from api.billing import openai_dashboard
from api.http import errors, json_text, render, request_body
from api.openai import replies
from api.submit import build, schemas
from api.submit.enqueue import accept
from api.submit.schemas import Controls
from api.waiting import wait
from models.billing import statement
from models.billing.money import usd
from models.config.settings import settings
from models.content.endpoints import CHAT
from models.database import db
from models.jobs import job_view
from models.jobs.states import TERMINAL, Status
from models.keys.keys import Key
from models.platform import wire
from models.platform.errors import Invalid, NotFound, ServingError

routes = Blueprint("pro", __name__, url_prefix="/pro")

#: characters, not bytes
LIMITS: Mapping[str, int] = {"apiKey": 64, "sessionId": 64, "content": 1_000}
SPENT_DAYS = 100
# It was deprecated from its first day (RFC 9745).
HEADERS = {
    "Deprecation": "@1680307200",
    "Link": '</docs>; rel="deprecation"; type="text/html", </v1/chat/completions>; rel="successor-version"',
    "Cache-Control": "no-store",
}
DONE = "执行成功"
WAITS = "排队中，请稍后凭 jobId 查询结果"
MESSAGES: Mapping[int, str] = {
    400: "请求参数有误，请检查后重试",
    401: "apiKey 无效，请检查后重试",
    402: "余额不足，请充值后重试",
    429: "排队人数已满，请稍后重试",
    500: "服务器内部错误，请稍后重试",
    502: "上游服务出错，请稍后重试",
    504: "等待超时，请稍后重试",
}
_CANCELLED = "任务已取消，请重新提交"


@routes.post("/chat/completions")
def ask() -> Response:
    """The answer when it is there within NOWSERVING_PRO_WAIT_S, else the job's id to fetch it by."""
    said = request_body.read(request)
    words = {name: _words(said, name, most) for name, most in LIMITS.items()}
    caller = _caller(words["apiKey"])
    wanted = {"model": settings().pro_model, "messages": [{"role": "user", "content": words["content"]}]}
    order = build.direct(caller, CHAT, wanted, write=lambda value: (json_text.dump(value), None), own=_session(words["sessionId"]))
    digest = request_body.digest(b"POST /pro\n", {name: words[name] for name in ("sessionId", "content")})
    accepted = accept(order, token=request.headers.get("Idempotency-Key"), digest=digest)
    return _answer(caller, wire.public_id(accepted.job_id))


@routes.get("/chat/completions/<name>")
def fetch(name: str) -> Response:
    """The answer that was not there in time."""
    return _answer(_caller(request.args.get("apiKey")), name)


@routes.get("/balance")
def balance() -> Response:
    """What the key was given, what it spent in the last 100 days, and the difference, in USD."""
    caller = _caller(request.args.get("apiKey"))
    since = datetime.now(UTC).date() - timedelta(days=SPENT_DAYS)
    with db.begin() as session:
        given = openai_dashboard.total(statement.standing(session, caller.id, caller.kind))
        used = statement.spent_microusd(session, caller.id, since=since, until=None)
    told = {"total": usd(given), "balance": usd(given - used), "used": usd(used)}
    return _told(200, DONE, data=told, timestamp=_now_ms())


@routes.errorhandler(ServingError)
def _refuse(error: ServingError) -> Response:
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        errors.record(error, event="request failed")
    code = _code(error.status, error.code)
    return _told(code, str(error) if isinstance(error, _Wrong) else MESSAGES[code])


@routes.errorhandler(Exception)
def _fail(error: Exception) -> Response:
    errors.record(error, event="unforeseen error")
    return _told(500, MESSAGES[500])


class _Wrong(Invalid):
    """What is wrong with the request, in words for its user."""


def _words(said: Mapping[str, Any], name: str, most: int) -> str:
    words = said.get(name)
    if not isinstance(words, str) or not words:
        raise _Wrong(f"{name} 为必填项，须为非空字符串")
    if len(words) > most:
        raise _Wrong(f"{name} 不能超过 {most} 个字符")
    return words


def _session(name: str) -> Controls:
    try:
        return schemas.check(Controls, {"conversation": name})
    except Invalid:
        raise _Wrong("sessionId 不能含有斜杠、反斜杠或不可见字符") from None


def _caller(token: str | None) -> Key:
    """Who asks: by `apiKey`, which stands in a query here and in no log, or by a Bearer token."""
    if not (token := token or auth.bearer(request)):
        raise _Wrong("apiKey 为必填项，须为非空字符串")
    return auth.caller(request, token=token)


def _answer(caller: Key, name: str) -> Response:
    try:
        job_id = wire.parse_id(name)
        wait.until_ended(job_id, caller.id, wait_s=settings().pro_wait_s)
        with db.begin() as session:
            row = job_view.find_job(session, job_id, caller.id)
            answer = job_view.read_result(session, row) if row.status == Status.SUCCEEDED else None
    except NotFound:
        raise _Wrong("jobId 不存在，请检查后重试") from None
    if row.status not in TERMINAL:
        return _told(202, WAITS, data=None, jobId=wire.public_id(job_id))
    if row.status == Status.SUCCEEDED:
        return _told(200, DONE, data=_content(answer), timestamp=_now_ms())
    if row.status == Status.CANCELLED:
        return _told(500, _CANCELLED)
    failed = replies.failure(row)
    # What is not found out there is the model, which is not what this API's callers chose.
    code = 502 if failed.status == HTTPStatus.NOT_FOUND else _code(failed.status, failed.error.get("code"))
    return _told(code, MESSAGES[code])


def _content(answer: Any) -> str:
    try:
        return str(answer["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError):
        return ""


def _code(status: int, code: object) -> int:
    """Its number for this refusal."""
    if code in ("insufficient_quota", "credit_balance_exhausted"):
        return 402
    if status in MESSAGES:
        return status
    return 400 if status < HTTPStatus.INTERNAL_SERVER_ERROR else 500


def _now_ms() -> int:
    return int(time.time() * 1000)


def _told(code: int, message: str, **more: object) -> Response:
    return render.answer({"code": code, "message": message, **more}, headers=HEADERS)

"""The legacy `/pro` API (openai-proxy.com, April 2023), which bots and mini-programs still use: a question, a session, an answer.

Every response, errors included, is an envelope over HTTP 200: the HTTP clients of its users throw on 4xx and lose the text. A question is a
job in a conversation; this module adds nothing else.
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
from api.http import errors, render, request_body
from api.openai import replies
from api.submit import build, schemas
from api.submit.enqueue import accept
from api.submit.schemas import Controls
from api.waiting import wait
from models.billing import statement
from models.billing.money import to_usd
from models.config.settings import settings
from models.content.endpoints import CHAT
from models.database import db
from models.jobs import job_rows, job_view
from models.jobs.states import TERMINAL, Status
from models.keys.keys import Key
from models.platform import wire
from models.platform.errors import Invalid, NotFound, ServingError

routes = Blueprint("pro", __name__, url_prefix="/pro")

# In characters, not bytes.
LIMITS: Mapping[str, int] = {"apiKey": 64, "sessionId": 64, "content": 1_000}
SPENT_DAYS = 100
# Deprecated since its first day (RFC 9745).
HEADERS = {
    "Deprecation": "@1680307200",
    "Link": '</docs>; rel="deprecation"; type="text/html", </v1/chat/completions>; rel="successor-version"',
    "Cache-Control": "no-store",
}
DONE = "执行成功"
QUEUED = "排队中，请稍后凭 jobId 查询结果"
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
    """Returns the answer if it is ready within NOWSERVING_PRO_WAIT_S, otherwise the job's id."""
    body = request_body.read_json(request)
    fields = {name: _required(body, name, limit) for name, limit in LIMITS.items()}
    caller = _caller(fields["apiKey"])
    chat = {"model": settings().pro_model, "messages": [{"role": "user", "content": fields["content"]}]}
    order = build.openai_submission(caller, CHAT, chat, encode=build.encode_json, controls=_session(fields["sessionId"]))
    digest = request_body.digest(b"POST /pro\n", {name: fields[name] for name in ("sessionId", "content")})
    accepted = accept(order, token=request.headers.get("Idempotency-Key"), digest=digest)
    return _respond_job(caller, wire.public_id(accepted.job_id))


@routes.get("/chat/completions/<name>")
def fetch(name: str) -> Response:
    """Returns the answer of an earlier question."""
    return _respond_job(_caller(request.args.get("apiKey")), name)


@routes.get("/balance")
def balance() -> Response:
    """Returns the key's grants, its spending of the last 100 days, and the difference, in USD."""
    caller = _caller(request.args.get("apiKey"))
    since = datetime.now(UTC).date() - timedelta(days=SPENT_DAYS)
    with db.begin() as session:
        granted = openai_dashboard.total_microusd(statement.statement_of(session, caller.id, caller.kind))
        spent = statement.spent_microusd(session, caller.id, since=since, until=None)
    data = {"total": to_usd(granted), "balance": to_usd(granted - spent), "used": to_usd(spent)}
    return _envelope(200, DONE, data=data, timestamp=_now_ms())


@routes.errorhandler(ServingError)
def _refuse(error: ServingError) -> Response:
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        errors.log_error(error, event="request failed")
    code = _code(error.status, error.code)
    return _envelope(code, str(error) if isinstance(error, _InvalidField) else MESSAGES[code])


@routes.errorhandler(Exception)
def _fail(error: Exception) -> Response:
    errors.log_error(error, event="unexpected error")
    return _envelope(500, MESSAGES[500])


class _InvalidField(Invalid):
    """An invalid request; the message is shown to the user."""


def _required(body: Mapping[str, Any], name: str, limit: int) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise _InvalidField(f"{name} 为必填项，须为非空字符串")
    if len(value) > limit:
        raise _InvalidField(f"{name} 不能超过 {limit} 个字符")
    return value


def _session(name: str) -> Controls:
    try:
        return schemas.validate(Controls, {"conversation": name})
    except Invalid:
        raise _InvalidField("sessionId 不能含有斜杠、反斜杠或不可见字符") from None


def _caller(token: str | None) -> Key:
    """Returns the caller of `apiKey` or of the Bearer token. The query string with `apiKey` is not logged."""
    if not (token := token or auth.bearer_token(request)):
        raise _InvalidField("apiKey 为必填项，须为非空字符串")
    return auth.authenticate(request, token=token)


def _respond_job(caller: Key, name: str) -> Response:
    try:
        job_id = wire.parse_id(name)
        wait.until_ended(job_id, caller.id, wait_s=settings().pro_wait_s)
        with db.begin() as session:
            row = job_rows.find_job(session, job_id, caller.id)
            answer = job_view.read_result(session, row) if row.status == Status.SUCCEEDED else None
    except NotFound:
        raise _InvalidField("jobId 不存在，请检查后重试") from None
    if row.status not in TERMINAL:
        return _envelope(202, QUEUED, data=None, jobId=wire.public_id(job_id))
    if row.status == Status.SUCCEEDED:
        return _envelope(200, DONE, data=_content(answer), timestamp=_now_ms())
    if row.status == Status.CANCELLED:
        return _envelope(500, _CANCELLED)
    failure = replies.failure(row)
    # A 404 of the upstream means the model, which callers of this API do not choose.
    code = 502 if failure.status == HTTPStatus.NOT_FOUND else _code(failure.status, failure.error.get("code"))
    return _envelope(code, MESSAGES[code])


def _content(answer: Any) -> str:
    try:
        return str(answer["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError):
        return ""


def _code(status: int, code: object) -> int:
    """Returns the envelope's code for this error."""
    if code in ("insufficient_quota", "credit_balance_exhausted"):
        return 402
    if status in MESSAGES:
        return status
    return 400 if status < HTTPStatus.INTERNAL_SERVER_ERROR else 500


def _now_ms() -> int:
    return int(time.time() * 1000)


def _envelope(code: int, message: str, **more: object) -> Response:
    return render.json_response({"code": code, "message": message, **more}, headers=HEADERS)

"""Handlers that replace Flower's: every page needs the login, and the only action is to cancel a job.

Flower's revoke makes workers discard a message, which does not end a job. Ours cancels the job in Postgres, whatever its state.
Growing pools, rate limits and tasks sent by hand would bypass the queue: they are closed, even with NOWSERVING_FLOWER_CONTROL.
"""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any
from uuid import UUID

from flower import urls
from flower.api.control import ControlHandler
from flower.views import BaseHandler
from flower.views.auth import LoginHandler, LogoutHandler
from flower.views.monitor import Healthcheck, Metrics
from flower.views.workers import WorkerView
from tornado import template, web
from tornado.routing import URLSpec

from models.access import audit_log, client_address
from models.access.audit_log import Act
from models.access.operators import Operator
from models.access.wrong_tokens import WrongTokens
from models.database import db
from models.jobs import cancellation
from models.jobs.states import Status
from models.platform import wire
from models.platform.errors import NotFound, TooManyWrongTokens, Unavailable
from workers.channels import notify

log = logging.getLogger(__name__)

CLOSED = re.compile(r"/api/(worker/.+|task/(apply|async-apply|send-task|abort|timeout|rate-limit)/.+)")
# A queued job is a task that was sent and not received; it can be cancelled too.
BUTTON = 'task.state == "RECEIVED" or'
OUR_BUTTON = 'task.state == "PENDING" or task.state == "RECEIVED" or'


class PasswordLimit:
    """Mixin before every handler of Flower: rate-limits wrong passwords per client address."""

    wrong = WrongTokens()
    request: Any

    def get_current_user(self) -> Any:
        sent = self.request.headers.get("Authorization", "")
        if not sent:
            return super().get_current_user()  # type: ignore[misc]  # defined by the handler class
        address = client_address.bucket_name(self.request.remote_ip, self.request.headers.get("X-Forwarded-For", ""))
        try:
            self.wrong.expect_room(address, sent)
        except TooManyWrongTokens as error:
            raise web.HTTPError(429, str(error)) from None
        try:
            user = super().get_current_user()  # type: ignore[misc]
        except web.HTTPError as error:
            if error.status_code == HTTPStatus.UNAUTHORIZED:
                self.wrong.note_wrong(address, sent, door="flower")
            raise
        self.wrong.note_right(address, sent)
        return user


class GuardedMetrics(Metrics):  # type: ignore[misc]  # flower ships no types
    """Metrics per worker and task, only after login."""

    @web.authenticated
    async def get(self) -> None:
        await super().get()


class GuardedHealth(Healthcheck):  # type: ignore[misc]
    """Health check, only after login; the 401 itself shows that Flower is up."""

    @web.authenticated
    async def get(self) -> None:
        await super().get()


class ReadOnlyWorkerView(WorkerView):  # type: ignore[misc]
    """A worker's page without the actions that are closed."""

    def render(self, name: str, **values: Any) -> None:
        super().render(name, **{**values, "read_only": True})


class Cancel(ControlHandler):  # type: ignore[misc]
    """Cancels a job in place of Flower's revoke, as POST /v1/jobs/{id}/cancel does."""

    @web.authenticated
    async def post(self, name: str) -> None:
        if self.application.options.read_only:
            raise web.HTTPError(403, "Flower is read-only. NOWSERVING_FLOWER_CONTROL=true lets its users cancel jobs.")
        try:
            job_id = wire.parse_id(name)
        except NotFound:
            raise web.HTTPError(404, "Not a job: only jobs can be cancelled.") from None
        message = await self.run_blocking("job.cancel", name, cancel, job_id, self._operator_name(), connection_errors=(Unavailable,))
        if message is None:
            raise web.HTTPError(404, "No such job.")
        self.write({"message": message})

    def _operator_name(self) -> str:
        """Returns the name for the audit log: the e-mail address of the login, else the user of the password."""
        user = self.current_user
        return f"flower:{user if isinstance(user, str) else self.application.options.basic_auth[0].partition(':')[0]}"

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        # A browser that opened a task's page directly sends the password to this path only after this header.
        if status_code == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        super().write_error(status_code, **kwargs)


class Closed(BaseHandler):  # type: ignore[misc]
    """Refuses actions that would bypass the queue."""

    @web.authenticated
    async def post(self, *_: str) -> None:
        raise web.HTTPError(403, "This would bypass the queue: use `nowserving` or /ops.")


def cancel(job_id: UUID, by: str) -> str | None:
    """Cancels a job, or requests it if the job runs; returns a message for the user, None if there is no such job."""
    with db.begin() as session:
        found = cancellation.key_of(session, job_id)
        if found is None:
            return None
        done = cancellation.cancel(session, job_id, found)
        if done is not None:
            audit_log.write(session, Act(Operator(by, "write")), "cancel", f"job:{job_id}", before=None, after={"status": done.status})
    if done is None:
        return f"{wire.public_id(job_id)} has ended already, or is being cancelled"
    is_ended = done.status == Status.CANCELLED
    log.info("cancelled in Flower", extra={"job": wire.public_id(job_id), "status": done.status})
    notify.job_changed(job_id, "cancelled" if is_ended else "cancelling")
    if is_ended:
        notify.lane_changed(done.lane_id, cancelled=job_id)
    return f"{wire.public_id(job_id)} is cancelled" if is_ended else f"{wire.public_id(job_id)} runs and is being stopped"


class Logout(LogoutHandler):  # type: ignore[misc]
    """Logout, only after login: other clients have no session."""

    @web.authenticated
    def get(self) -> None:
        super().get()


REPLACEMENTS = {
    "/logout": Logout,
    "/metrics": GuardedMetrics,
    "/healthcheck": GuardedHealth,
    "/worker/(.+)": ReadOnlyWorkerView,
    "/api/task/revoke/(.+)": Cancel,
}


def replace_handlers() -> None:
    """Replaces the handlers in Flower's URL table."""
    urls.handlers[:] = [_replaced(entry) for entry in urls.handlers]


def _replaced(entry: Any) -> Any:
    if isinstance(entry, URLSpec):
        pattern = entry.regex.pattern.removesuffix("$")
        return URLSpec(pattern, _limited(REPLACEMENTS.get(pattern, entry.target)), entry.kwargs, entry.name)
    pattern, handler = entry[0], entry[1]
    if pattern in REPLACEMENTS:
        return (pattern, _limited(REPLACEMENTS[pattern]))
    return (pattern, _limited(Closed)) if CLOSED.fullmatch(pattern) else (pattern, _limited(handler), *entry[2:])


def _limited(handler: type) -> type:
    return (
        type(handler.__name__, (PasswordLimit, handler), {})
        if issubclass(handler, BaseHandler) and handler is not LoginHandler
        else handler
    )


class _Loader(template.Loader):
    """Loads Flower's templates; the task page shows the cancel button for queued jobs too."""

    def _create_template(self, name: str) -> template.Template:
        original = super()._create_template(name)
        if name != "task.html":
            return original
        with open(f"{self.root}/{name}", encoding="utf-8") as file:  # noqa: PTH123  # as tornado's own loader does it
            return template.Template(file.read().replace(BUTTON, OUR_BUTTON), name=name, loader=self)


def loader(folder: str) -> template.BaseLoader:
    """Returns a template loader for Flower's folder."""
    return _Loader(folder)

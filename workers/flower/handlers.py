"""Flower's addresses as we serve them: nothing without the password, and of all that it could do to the workers only what keeps promises.

Its revoke tells workers to forget a message, of which we lose nothing by design; ours cancels the job, durably, wherever it is.
Growing pools, rate limits and tasks sent by hand would work around the line: they are closed, whatever NOWSERVING_FLOWER_CONTROL says.
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
# A job that waits in line is a task that was sent and not received: it can be cancelled like the others.
BUTTON = 'task.state == "RECEIVED" or'
OUR_BUTTON = 'task.state == "PENDING" or task.state == "RECEIVED" or'


class PasswordLimit:
    """Before every handler of Flower: wrong passwords are counted for each address, and too many have to wait."""

    wrong = WrongTokens()
    request: Any

    def get_current_user(self) -> Any:
        sent = self.request.headers.get("Authorization", "")
        if not sent:
            return super().get_current_user()  # type: ignore[misc]  # of the handler behind this class
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
    """Counts per worker and task are nobody else's business."""

    @web.authenticated
    async def get(self) -> None:
        await super().get()


class GuardedHealth(Healthcheck):  # type: ignore[misc]
    """That something serves here can be told from the 401 as well."""

    @web.authenticated
    async def get(self) -> None:
        await super().get()


class ReadOnlyWorkerView(WorkerView):  # type: ignore[misc]
    """A worker's page without the levers that we have closed."""

    def render(self, name: str, **values: Any) -> None:
        super().render(name, **{**values, "read_only": True})


class Cancel(ControlHandler):  # type: ignore[misc]
    """Revoke, as POST /v1/jobs/{id}/cancel does it."""

    @web.authenticated
    async def post(self, name: str) -> None:
        if self.application.options.read_only:
            raise web.HTTPError(403, "Flower only shows here. NOWSERVING_FLOWER_CONTROL=true lets its users cancel jobs.")
        try:
            job_id = wire.parse_id(name)
        except NotFound:
            raise web.HTTPError(404, "This is no job: only jobs can be cancelled.") from None
        said = await self.run_blocking("job.cancel", name, cancel, job_id, self._who(), connection_errors=(Unavailable,))
        if said is None:
            raise web.HTTPError(404, "There is no such job (any more).")
        self.write({"message": said})

    def _who(self) -> str:
        """As the log of operators' acts names them: the address that logged in, else the user of the password."""
        user = self.current_user
        return f"flower:{user if isinstance(user, str) else self.application.options.basic_auth[0].partition(':')[0]}"

    def write_error(self, status_code: int, **why: Any) -> None:
        # A browser that came straight to a task's page has not learned yet that the password is for this address too.
        if status_code == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        super().write_error(status_code, **why)


class Closed(BaseHandler):  # type: ignore[misc]
    """What would work around the line."""

    @web.authenticated
    async def post(self, *_: str) -> None:
        raise web.HTTPError(403, "This would work around the line: use `nowserving` or /ops.")


def cancel(job_id: UUID, by: str) -> str | None:
    """The job is cancelled, or told to stop when it runs; what to tell who asked. None when there is no such job."""
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
    return f"{wire.public_id(job_id)} is cancelled" if is_ended else f"{wire.public_id(job_id)} runs and was told to stop"


class Logout(LogoutHandler):  # type: ignore[misc]
    """Ends a session: of a stranger there is none."""

    @web.authenticated
    def get(self) -> None:
        super().get()


OURS = {
    "/logout": Logout,
    "/metrics": GuardedMetrics,
    "/healthcheck": GuardedHealth,
    "/worker/(.+)": ReadOnlyWorkerView,
    "/api/task/revoke/(.+)": Cancel,
}


def replace_handlers() -> None:
    """Flower's list of addresses leads to ours."""
    urls.handlers[:] = [_ours(one) for one in urls.handlers]


def _ours(one: Any) -> Any:
    if isinstance(one, URLSpec):
        pattern = one.regex.pattern.removesuffix("$")
        return URLSpec(pattern, _slowed(OURS.get(pattern, one.target)), one.kwargs, one.name)
    pattern, handler = one[0], one[1]
    if pattern in OURS:
        return (pattern, _slowed(OURS[pattern]))
    return (pattern, _slowed(Closed)) if CLOSED.fullmatch(pattern) else (pattern, _slowed(handler), *one[2:])


def _slowed(handler: type) -> type:
    return (
        type(handler.__name__, (PasswordLimit, handler), {})
        if issubclass(handler, BaseHandler) and handler is not LoginHandler
        else handler
    )


class _Loader(template.Loader):
    """Flower's pages, with the button to revoke also on tasks that wait."""

    def _create_template(self, name: str) -> template.Template:
        made = super()._create_template(name)
        if name != "task.html":
            return made
        with open(f"{self.root}/{name}", encoding="utf-8") as file:  # noqa: PTH123  # as tornado's own loader does it
            return template.Template(file.read().replace(BUTTON, OUR_BUTTON), name=name, loader=self)


def loader(folder: str) -> template.BaseLoader:
    """Reads the pages from Flower's folder."""
    return _Loader(folder)

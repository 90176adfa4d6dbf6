"""Rate limiter of a credential and model in Redis: an admission charges all limits together or none.

The rules are in limiter.lua. After NO_STATE the caller rebuilds the state from Postgres with `init` before it admits anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from models.config.settings import settings
from models.keys.keys import Limits
from models.platform.errors import LimiterUnavailable
from workers.channels.notify import Message
from workers.limiter.requests import AdmitRequest, BlockedBy, CredentialModel, Grant, Headroom, Learned, PastCharges, Report

SCRIPT = (Path(__file__).parent / "limiter.lua").read_text(encoding="utf-8")
MAX_RESET_MS = 24 * 3600 * 1000
HISTORY: tuple[PastCharges, ...] = ()
LEASES: Mapping[str, tuple[int, int, int]] = {}

# Scope, operation and arguments of one EVALSHA.
_Eval = tuple[CredentialModel, str, Iterable[object]]


class Limiter:
    """The limiter state of all scopes in one Redis. Redis' clock counts, unless `clock` (µs) is given.

    Every method raises LimiterUnavailable if Redis does not answer: no job is admitted unthrottled.
    """

    def __init__(self, client: redis.Redis, clock: Callable[[], int] | None = None) -> None:
        self._client = client
        self._clock = clock or (lambda: 0)
        self._sha = client.register_script(SCRIPT).sha

    def admit(self, scope: CredentialModel, requests: Sequence[AdmitRequest], *, lease_ms: int) -> Grant:
        """Charges and leases as many of the requests as may go now, in their order."""
        return self.admit_many([(scope, requests)], lease_ms=lease_ms)[0]

    def admit_many(self, batch: Sequence[tuple[CredentialModel, Sequence[AdmitRequest]]], *, lease_ms: int) -> list[Grant]:
        """`admit` for several scopes in one round trip."""
        evals = [(scope, "admit", [_us(lease_ms), *_flat(requests)]) for scope, requests in batch]
        return [_grant(reply) for reply in self._run(evals)]

    def charge_again(self, scope: CredentialModel, dispatch_id: str, *, lease_ms: int) -> Grant:
        """Charges a late claim at the time of its call. A denial charges nothing and keeps the lease.

        admitted 0 and blocked_by None: the lease is gone, and the claim must give up.
        """
        return _grant(self._one(scope, "charge_again", _us(lease_ms), dispatch_id))

    def renew(self, scope: CredentialModel, dispatch_ids: Sequence[str], *, lease_ms: int) -> set[str]:
        """Renews leases; returns those still held. It is empty without state too, which says nothing about the jobs' own leases."""
        return self.renew_many([(scope, dispatch_ids)], lease_ms=lease_ms)[0]

    def renew_many(self, batch: Sequence[tuple[CredentialModel, Sequence[str]]], *, lease_ms: int) -> list[set[str]]:
        """`renew` for several scopes in one round trip."""
        evals = [(scope, "renew", [_us(lease_ms), *ids]) for scope, ids in batch]
        return [{_text(dispatch_id) for dispatch_id in reply} for reply in self._run(evals)]

    def release(self, scope: CredentialModel, dispatch_id: str, report: Report, *, message: Message | None = None) -> Learned:
        """Releases the lease and applies what the answer reports. Idempotent. message: published in the same round trip."""
        args = [
            dispatch_id, int(report.sent), int(report.good),
            _positive(report.limit_requests), _reset_us(report.reset_requests_ms),
            _positive(report.limit_tokens), _reset_us(report.reset_tokens_ms),
            _us(report.cooldown_ms) if report.cooldown_ms is not None and report.cooldown_ms > 0 else None,
            int(report.pushed_back), int(report.throttled), int(report.is_repeat), int(settings().pause_s * 1e6),
            int(settings().pause_most_s * 1e6), report.jitter, int(report.exceeds),
        ]  # fmt: skip
        reply = self._run([(scope, "release", args)], message=message)[0]
        window, rpm, tpm = (_known(value) for value in reply[:3])
        return Learned(window, rpm, tpm, cooldown_until_us=reply[3], changed=bool(reply[4]), tpm_refuted=bool(reply[5]))

    def peek_many(self, scopes: Sequence[CredentialModel]) -> list[Headroom | None]:
        """Returns the headroom of each scope, to choose a credential; None for NO_STATE. One round trip."""
        return [_headroom(reply) for reply in self._run([(scope, "peek", ()) for scope in scopes])]

    def configure(self, scope: CredentialModel, limits: Limits) -> bool:
        """Sets the operator's limits. False: there is no state; the rebuild will set them."""
        return bool(self._one(scope, "configure", *astuple(limits)))

    def pause(self, scope: CredentialModel, *, until_in_ms: int) -> bool:
        """Stops admissions for this time. False: there is no state."""
        return bool(self._one(scope, "pause", _us(until_in_ms)))

    def unpause(self, scope: CredentialModel) -> bool:
        """Ends any cooldown. False: there is no state."""
        return bool(self._one(scope, "unpause"))

    def init(
        self, scope: CredentialModel, limits: Limits, *, learned_rpm: int | None = None, learned_tpm: int | None = None,
        window: float | None = None, cooldown_until_us: int = 0, past: Sequence[PastCharges] = HISTORY,
        day: Sequence[PastCharges] = HISTORY, leases: Mapping[str, tuple[int, int, int]] = LEASES,
    ) -> bool:  # fmt: skip
        """Rebuilds the state, never looser than the lost one. False: another process rebuilt it first; its state stays.

        past: charges of the last 600 s for the minute limits, in groups of about a second, with admitted jobs that are not called yet.
        day: charges of the last 24 h for rpd, coarser. leases: dispatch id → (expiry in µs of Redis' clock, tokens, images).
        """
        history = [*_counted(past), *_counted(day)]
        held = [value for dispatch_id, lease in leases.items() for value in (dispatch_id, *lease)]
        learned = (learned_rpm, learned_tpm, window, cooldown_until_us)
        return bool(self._one(scope, "init", *astuple(limits), *learned, *history, *held))

    def forget(self, scope: CredentialModel) -> None:
        """Deletes the state: the next admission must rebuild it."""
        try:
            self._client.delete(*keys(scope))
        except redis.RedisError as error:
            raise LimiterUnavailable from error

    def _one(self, scope: CredentialModel, operation: str, *args: object) -> Any:
        return self._run([(scope, operation, args)])[0]

    def _run(self, evals: Sequence[_Eval], *, message: Message | None = None) -> list[Any]:
        """Returns the replies in one round trip; a second one reloads the script after a restart of Redis.

        redis-py's own handling of NOSCRIPT costs a round trip before every pipeline.
        """
        if not evals:
            return []
        try:
            replies = self._pipelined(evals, message)
            if missing := [i for i, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]:
                self._client.script_load(SCRIPT)
                for i, reply in zip(missing, self._pipelined([evals[i] for i in missing]), strict=True):
                    replies[i] = reply
        except redis.RedisError as error:
            raise LimiterUnavailable from error
        for reply in replies:
            if isinstance(reply, Exception):
                raise LimiterUnavailable from reply
        return replies

    def _pipelined(self, evals: Sequence[_Eval], message: Message | None = None) -> list[Any]:
        now_us = self._clock()
        with self._client.pipeline(transaction=False) as pipeline:
            for scope, operation, args in evals:
                argv = ["" if value is None else str(value) for value in (operation, now_us, *args)]
                pipeline.evalsha(self._sha, 5, *keys(scope), *argv)
            if message:
                pipeline.publish(*message)
            return pipeline.execute(raise_on_error=False)[: len(evals)]


def keys(scope: CredentialModel) -> tuple[str, str, str, str, str]:
    """Returns the five Redis keys of a scope, in one cluster slot whatever characters the model's name has."""
    tag = f"ns:{{{scope.credential_id}:{quote(scope.model, safe='/:@', errors='surrogatepass')}}}"
    return f"{tag}:state", f"{tag}:leases", f"{tag}:costs", f"{tag}:minutes", f"{tag}:days"


def _grant(reply: list[Any]) -> Grant:
    blocked_by = _text(reply[2])
    return Grant(reply[0], _known(reply[1]), BlockedBy(blocked_by) if blocked_by else None)


def _headroom(reply: list[Any] | None) -> Headroom | None:
    return Headroom(reply[0], _known(reply[1]), reply[2], float(reply[3])) if reply else None


def _flat(requests: Sequence[AdmitRequest]) -> list[object]:
    return [value for request in requests for value in (request.dispatch_id, request.tokens, request.images, request.since_us)]


def _counted(history: Sequence[PastCharges]) -> list[int]:
    groups = sorted(history, key=lambda group: group.at_us)
    return [len(groups), *(value for group in groups for value in (group.at_us, group.requests, group.tokens, group.images))]


def _us(ms: int) -> int:
    return ms * 1000


def _positive(limit: int | None) -> int | None:
    # Azure sends -1 and 0 when it has no limit.
    return limit if limit is not None and limit > 0 else None


def _reset_us(reset_ms: int | None) -> int | None:
    return _us(reset_ms) if reset_ms is not None and 0 < reset_ms <= MAX_RESET_MS else None


def _known(value: int) -> int | None:
    return value if value >= 0 else None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value

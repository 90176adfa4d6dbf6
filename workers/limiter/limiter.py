"""Every limit of a credential and model, held in Redis: what may go now is charged all at once or not at all.

The rules are in limiter.lua. Whoever gets NO_STATE rebuilds with `init` from Postgres before anything is let through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from models.config.settings import settings
from models.keys.keys import Limits
from models.platform.errors import LimiterUnavailable
from workers.channels.notify import Message

__all__ = ["AdmitRequest", "BlockedBy", "CredentialModel", "Grant", "Headroom", "Learned", "Limiter", "Limits", "PastCharges", "Report"]

SCRIPT = (Path(__file__).parent / "limiter.lua").read_text(encoding="utf-8")
LONGEST_RESET_MS = 24 * 3600 * 1000


class BlockedBy(StrEnum):
    RPM = "rpm"
    TPM = "tpm"
    IPM = "ipm"
    RPD = "rpd"
    IN_FLIGHT = "in_flight"
    COOLDOWN = "cooldown"
    UPSTREAM = "upstream"  # its own headers say that it is used up, by someone else too
    NO_STATE = "no_state"


@dataclass(frozen=True)
class CredentialModel:
    credential_id: int
    model: str


@dataclass(frozen=True)
class AdmitRequest:
    """One request; the dispatch id makes asking twice the same as asking once.

    since_us: when the job came, epoch µs. A job larger than a learned limit is tried once, unless an answer has confirmed the limit
    since then; 0: it is refused at once.
    """

    dispatch_id: str
    tokens: int
    images: int = 0
    since_us: int = 0


@dataclass(frozen=True)
class Grant:
    """admitted: how many from the front of the asks; the first denied one stops the rest.

    wake_in_ms None with blocked_by: larger than the limit itself, so never. NO_STATE has 0: rebuild and ask again at once.
    """

    admitted: int
    wake_in_ms: int | None
    blocked_by: BlockedBy | None


@dataclass(frozen=True)
class Headroom:
    """free None: in flight is not limited. share: 0 to 1 of the scarcest limit."""

    in_flight: int
    free: int | None
    wait_ms: int
    share: float


@dataclass(frozen=True)
class Report:
    """Result of one upstream call. sent False: the call never left, so its charges are given back.

    pushed_back: fewer calls in flight from now on. throttled: refused for load; the credential and model pause for cooldown_ms (what
    the upstream asked for), else for a time that doubles with each pause until a call is answered. is_repeat: the job was refused so
    before; when other jobs were answered since, the refusal belongs to the job and nobody pauses. jitter: 0 to 1. exceeds: refused because
    it is larger than the limit.
    """

    sent: bool = True
    good: bool = False
    limit_requests: int | None = None
    limit_tokens: int | None = None
    reset_requests_ms: int | None = None
    reset_tokens_ms: int | None = None
    cooldown_ms: int | None = None
    pushed_back: bool = False
    throttled: bool = False
    is_repeat: bool = False
    jitter: float = 0.0
    exceeds: bool = False


@dataclass(frozen=True)
class Learned:
    """What to store when changed. None and 0 mean that nothing is known: they must not overwrite what is stored.

    window: None until the first push-back. tpm_refuted: a job larger than the learned limit was answered, so the limit is unknown again.
    """

    window: int | None
    learned_rpm: int | None
    learned_tpm: int | None
    cooldown_until_us: int
    changed: bool
    tpm_refuted: bool = False


@dataclass(frozen=True)
class PastCharges:
    """A group of charges in the ledger; at_us is the end of the group, so that it is never counted too early."""

    at_us: int
    requests: int
    tokens: int
    images: int


Call = tuple[CredentialModel, str, Iterable[object]]
HISTORY: tuple[PastCharges, ...] = ()
LEASES: Mapping[str, tuple[int, int, int]] = {}


class Limiter:
    """All meters of one Redis. Its own clock counts, unless `clock` (µs) is given.

    Every method raises LimiterUnavailable when Redis is silent: nothing goes out unthrottled.
    """

    def __init__(self, client: redis.Redis, clock: Callable[[], int] | None = None) -> None:
        self._client = client
        self._clock = clock or (lambda: 0)
        self._sha = client.register_script(SCRIPT).sha

    def admit(self, meter: CredentialModel, asks: Sequence[AdmitRequest], *, lease_ms: int) -> Grant:
        """As many of the asks as may go now, in their order, are charged and hold a lease."""
        return self.admit_many([(meter, asks)], lease_ms=lease_ms)[0]

    def admit_many(self, wants: Sequence[tuple[CredentialModel, Sequence[AdmitRequest]]], *, lease_ms: int) -> list[Grant]:
        """`admit` for several meters in one round trip."""
        calls = [(meter, "admit", [_us(lease_ms), *_flat(asks)]) for meter, asks in wants]
        return [_grant(reply) for reply in self._run(calls)]

    def charge_again(self, meter: CredentialModel, dispatch_id: str, *, lease_ms: int) -> Grant:
        """A late claim has paid for the moment it really sends; a denial charges nothing and leaves the lease.

        admitted 0 and blocked_by None: the lease is gone, the claim must give up.
        """
        return _grant(self._one(meter, "charge_again", _us(lease_ms), dispatch_id))

    def renew(self, meter: CredentialModel, dispatch_ids: Sequence[str], *, lease_ms: int) -> set[str]:
        """Those still held, for lease_ms more. Empty without state too: it says nothing about the jobs' own leases."""
        return self.renew_many([(meter, dispatch_ids)], lease_ms=lease_ms)[0]

    def renew_many(self, wants: Sequence[tuple[CredentialModel, Sequence[str]]], *, lease_ms: int) -> list[set[str]]:
        """`renew` for several meters in one round trip."""
        calls = [(meter, "renew", [_us(lease_ms), *ids]) for meter, ids in wants]
        return [{_text(one) for one in reply} for reply in self._run(calls)]

    def release(self, meter: CredentialModel, dispatch_id: str, report: Report, *, tell: Message | None = None) -> Learned:
        """The lease is gone and what the answer taught is in force. Twice is the same as once. tell: said in the same round trip."""
        requests = [_positive(report.limit_requests), _reset_us(report.reset_requests_ms)]
        tokens = [_positive(report.limit_tokens), _reset_us(report.reset_tokens_ms)]
        flags = [int(report.sent), int(report.good)]
        cooldown = _us(report.cooldown_ms) if report.cooldown_ms is not None and report.cooldown_ms > 0 else None
        pace = (
            int(report.throttled),
            int(report.is_repeat),
            int(settings().pause_s * 1e6),
            int(settings().pause_most_s * 1e6),
            report.jitter,
            int(report.exceeds),
        )
        args = (dispatch_id, *flags, *requests, *tokens, cooldown, int(report.pushed_back), *pace)
        reply = self._run([(meter, "release", args)], tell=tell)[0]
        window, rpm, tpm = (_known(value) for value in reply[:3])
        return Learned(window, rpm, tpm, cooldown_until_us=reply[3], changed=bool(reply[4]), tpm_refuted=bool(reply[5]))

    def peek_many(self, meters: Sequence[CredentialModel]) -> list[Headroom | None]:
        """The room of each meter, for choosing a credential; None is NO_STATE. One round trip."""
        return [_room(reply) for reply in self._run([(meter, "peek", ()) for meter in meters])]

    def configure(self, meter: CredentialModel, limits: Limits) -> bool:
        """The operator's limits are in force from now on. False: no state, the rebuild will bring them."""
        return bool(self._one(meter, "configure", *astuple(limits)))

    def pause(self, meter: CredentialModel, *, until_in_ms: int) -> bool:
        """Nothing is admitted for that long. False: no state."""
        return bool(self._one(meter, "pause", _us(until_in_ms)))

    def unpause(self, meter: CredentialModel) -> bool:
        """No cooldown is left, whoever set it. False: no state."""
        return bool(self._one(meter, "unpause"))

    def init(
        self, meter: CredentialModel, limits: Limits, *, learned_rpm: int | None = None, learned_tpm: int | None = None,
        window: float | None = None, cooldown_until_us: int = 0, past: Sequence[PastCharges] = HISTORY,
        day: Sequence[PastCharges] = HISTORY, leases: Mapping[str, tuple[int, int, int]] = LEASES,
    ) -> bool:  # fmt: skip
        """The state is rebuilt, never looser than the one that was lost. False: someone was first; theirs stays.

        past: the last 600 s for the minute limits, in groups of about a second, admitted jobs not yet called included.
        day: the last 24 h for rpd, coarser. leases: dispatch id → (expiry in µs of Redis' clock, tokens, images).
        """
        history = [*_counted(past), *_counted(day)]
        held = [value for dispatch_id, lease in leases.items() for value in (dispatch_id, *lease)]
        learned = (learned_rpm, learned_tpm, window, cooldown_until_us)
        return bool(self._one(meter, "init", *astuple(limits), *learned, *history, *held))

    def forget(self, meter: CredentialModel) -> None:
        """No state: the next one to ask must rebuild."""
        try:
            self._client.delete(*keys(meter))
        except redis.RedisError as error:
            raise LimiterUnavailable from error

    def _one(self, meter: CredentialModel, operation: str, *args: object) -> Any:
        return self._run([(meter, operation, args)])[0]

    def _run(self, calls: Sequence[Call], *, tell: Message | None = None) -> list[Any]:
        """The replies, in one round trip; one more after Redis was restarted and has forgotten the script. tell: a wake-up that goes along.

        redis-py's own handling of NOSCRIPT costs a round trip before every pipeline.
        """
        if not calls:
            return []
        try:
            replies = self._pipelined(calls, tell)
            if lost := [i for i, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]:
                self._client.script_load(SCRIPT)
                for i, reply in zip(lost, self._pipelined([calls[i] for i in lost]), strict=True):
                    replies[i] = reply
        except redis.RedisError as error:
            raise LimiterUnavailable from error
        for reply in replies:
            if isinstance(reply, Exception):
                raise LimiterUnavailable from reply
        return replies

    def _pipelined(self, calls: Sequence[Call], tell: Message | None = None) -> list[Any]:
        now_us = self._clock()
        with self._client.pipeline(transaction=False) as pipeline:
            for meter, operation, args in calls:
                sent = ["" if value is None else str(value) for value in (operation, now_us, *args)]
                pipeline.evalsha(self._sha, 5, *keys(meter), *sent)
            if tell:
                pipeline.publish(*tell)
            return pipeline.execute(raise_on_error=False)[: len(calls)]


def keys(meter: CredentialModel) -> tuple[str, str, str, str, str]:
    """Its five keys, in one slot whatever characters the model's name has."""
    tag = f"ns:{{{meter.credential_id}:{quote(meter.model, safe='/:@', errors='surrogatepass')}}}"
    return f"{tag}:state", f"{tag}:leases", f"{tag}:costs", f"{tag}:minutes", f"{tag}:days"


def _grant(reply: list[Any]) -> Grant:
    blocked_by = _text(reply[2])
    return Grant(reply[0], _known(reply[1]), BlockedBy(blocked_by) if blocked_by else None)


def _room(reply: list[Any] | None) -> Headroom | None:
    return Headroom(reply[0], _known(reply[1]), reply[2], float(reply[3])) if reply else None


def _flat(asks: Sequence[AdmitRequest]) -> list[object]:
    return [value for ask in asks for value in (ask.dispatch_id, ask.tokens, ask.images, ask.since_us)]


def _counted(history: Sequence[PastCharges]) -> list[int]:
    groups = sorted(history, key=lambda past: past.at_us)
    return [len(groups), *(value for past in groups for value in (past.at_us, past.requests, past.tokens, past.images))]


def _us(ms: int) -> int:
    return ms * 1000


def _positive(limit: int | None) -> int | None:
    # Azure sends -1 and 0 where it has no limit to tell.
    return limit if limit is not None and limit > 0 else None


def _reset_us(reset_ms: int | None) -> int | None:
    return _us(reset_ms) if reset_ms is not None and 0 < reset_ms <= LONGEST_RESET_MS else None


def _known(value: int) -> int | None:
    return value if value >= 0 else None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value

"""The limiter's rules once more, in plain Python without Redis: what the property tests hold limiter.lua against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from workers.limiter import Ask, BlockedBy, Grant, Learned, Limits, Past, Report

MINUTE, DAY = 60_000_000, 86_400_000_000
WINDOW_US = {"rpm": MINUTE, "tpm": MINUTE, "ipm": MINUTE, "rpd": DAY}
MIRRORED = ("rpm", "tpm")


def units_of(ask: Ask | Lease) -> dict[str, int]:
    return {"rpm": 1, "tpm": ask.tokens, "ipm": ask.images, "rpd": 1}


@dataclass
class Lease:
    expiry_us: int
    tokens: int
    images: int
    paid_at: int = 0
    change: int = -1
    before: dict[str, int] = field(default_factory=dict)
    paid: dict[str, int] = field(default_factory=dict)
    mirrored: dict[str, int] = field(default_factory=dict)


@dataclass
class State:
    limits: Limits
    learned: dict[str, int]
    tat: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    window: float | None = None
    cut_at: int | None = None
    cool_until: int = 0
    changes: int = 0

    def limit(self, gate: str) -> int | None:
        own: int | None = getattr(self.limits, gate)
        return self.learned.get(gate) if own is None else own

    def is_unknown(self) -> bool:
        return self.limit("rpm") is None and self.limit("tpm") is None and self.limits.max_in_flight is None

    def spare_and_slack(self, gate: str) -> tuple[float, int]:
        limit = self.limit(gate) or 0
        burst = max(1, limit / 2 if gate == "rpd" else limit / 120)
        spare = limit - burst if limit > burst else 1
        slack = math.ceil(WINDOW_US[gate] * burst / spare)
        one_by_one = math.floor(burst) * math.ceil(WINDOW_US[gate] / spare)
        return spare, max(slack, one_by_one) if gate in ("rpm", "rpd") else slack

    def slack(self, gate: str) -> int:
        return self.spare_and_slack(gate)[1]

    def price(self, gate: str, units: int) -> int:
        return math.ceil(units * WINDOW_US[gate] / self.spare_and_slack(gate)[0])

    def mirror_price(self, gate: str, units: int) -> int:
        return math.ceil(units * MINUTE / self.learned[gate])


class Model:
    """One meter. `now` is passed to every step; None as state is amnesia."""

    def __init__(self) -> None:
        self.state: State | None = None

    def enter(self, now: int) -> State | None:
        if self.state:
            for gate, tat in self.state.tat.items():
                if self.state.limit(gate) is not None:
                    self.state.tat[gate] = min(tat, now + WINDOW_US[gate] + self.state.slack(gate) + 1)
            for gate, up in self.state.up.items():
                self.state.up[gate] = min(up, now + MINUTE)
            self.state.leases = {name: lease for name, lease in self.state.leases.items() if lease.expiry_us > now}
        return self.state

    def lose(self, key: str) -> None:
        """The state is noticed as lost, unless what was deleted was empty anyway."""
        if self.state and (key == "state" or self.state.leases):
            self.state = None

    def admit(self, now: int, asks: Sequence[Ask], lease_us: int) -> Grant:
        state = self.enter(now)
        if state is None:
            return Grant(0, 0, BlockedBy.NO_STATE)
        for admitted, ask in enumerate(asks):
            if ask.dispatch_id not in state.leases:
                wait, blocked_by = self._wait(state, now, units_of(ask), seat_us=self._seat_wait(state, now))
                if wait > 0:
                    return Grant(admitted, None if wait == math.inf else math.ceil(wait / 1000), blocked_by)
                state.leases[ask.dispatch_id] = Lease(0, ask.tokens, ask.images)
                self._charge(state, now, state.leases[ask.dispatch_id])
            self._extend(state.leases[ask.dispatch_id], now + lease_us)
        return Grant(len(asks), None, None)

    def charge_again(self, now: int, dispatch_id: str, lease_us: int) -> Grant:
        state = self.enter(now)
        if state is None:
            return Grant(0, 0, BlockedBy.NO_STATE)
        if dispatch_id not in state.leases:
            return Grant(0, None, None)
        lease = state.leases[dispatch_id]
        wait, blocked_by = self._wait(state, now, units_of(lease), seat_us=0)
        if wait > 0:
            return Grant(0, None if wait == math.inf else math.ceil(wait / 1000), blocked_by)
        self._charge(state, now, lease)
        self._extend(lease, now + lease_us)
        return Grant(1, None, None)

    def renew(self, now: int, dispatch_ids: Sequence[str], lease_us: int) -> set[str]:
        state = self.enter(now)
        held = set(dispatch_ids) & set(state.leases) if state else set()
        for name in held:
            assert state
            self._extend(state.leases[name], now + lease_us)
        return held

    def release(self, now: int, dispatch_id: str, report: Report) -> Learned:
        state = self.enter(now)
        cooldown_us = (report.cooldown_ms or 0) * 1000
        heard = {"rpm": report.limit_requests, "tpm": report.limit_tokens}
        resets = {"rpm": report.reset_requests_ms, "tpm": report.reset_tokens_ms}
        limits = {gate: limit for gate, limit in heard.items() if limit is not None and limit > 0}
        if state is None:
            until = now + cooldown_us if cooldown_us else 0
            return Learned(None, limits.get("rpm"), limits.get("tpm"), until, changed=bool(until or limits))
        flying = len(state.leases)
        lease = state.leases.pop(dispatch_id, None)
        if lease and not report.sent:
            self._refund(state, now, lease)
        if lease and report.good and state.window is not None:
            state.window = min(10_000, state.window + (1 if state.cut_at is None else 1 / state.window))
        changed = False
        for gate in MIRRORED:
            if gate in limits and limits[gate] != state.learned.get(gate):
                self._relimit(state, now, state.limits, {**state.learned, gate: limits[gate]})
                changed = True
            reset_ms = resets[gate]
            if reset_ms and 0 < reset_ms <= 86_400_000 and gate in state.learned:
                state.up[gate] = min(max(state.up.get(gate, 0), now + reset_ms * 1000), now + MINUTE)
        if cooldown_us and now + cooldown_us > state.cool_until:
            state.cool_until, changed = now + cooldown_us, True
        if report.pushed_back and (state.cut_at is None or now - state.cut_at >= 1_000_000):
            window = max(1, min(state.window or math.inf, flying) / 2)
            changed = changed or window != state.window
            state.window, state.cut_at = window, now
        window_seen = None if state.window is None or state.cut_at is None else math.floor(state.window)
        cool = state.cool_until if state.cool_until > now else 0
        return Learned(window_seen, state.learned.get("rpm"), state.learned.get("tpm"), cool, changed)

    def configure(self, now: int, limits: Limits) -> bool:
        state = self.enter(now)
        if state is None:
            return False
        self._relimit(state, now, limits, state.learned)
        if state.is_unknown():
            state.window = state.window or 1
        elif state.cut_at is None:
            state.window = None
        return True

    def pause(self, now: int, us: int) -> bool:
        if state := self.enter(now):
            state.cool_until = max(state.cool_until, now + us)
        return state is not None

    def unpause(self, now: int) -> bool:
        if state := self.enter(now):
            state.cool_until = 0
        return state is not None

    def init(
        self, now: int, limits: Limits, *, learned: Mapping[str, int], window: float | None, cool_until: int,
        past: Sequence[Past], day: Sequence[Past], leases: Mapping[str, tuple[int, int, int]],
    ) -> bool:  # fmt: skip
        if self.enter(now):
            return False
        state = self.state = State(limits, dict(learned), window=window, cut_at=None if window is None else 0)
        if window is None and state.is_unknown():
            state.window = 1
        state.cool_until = cool_until if cool_until > now else 0
        for gate, width in WINDOW_US.items():
            horizon = now - (width if gate == "rpd" else 10 * MINUTE)
            groups = sorted((one for one in (day if gate == "rpd" else past) if one.at_us > horizon), key=lambda one: one.at_us)
            if state.limit(gate) is not None:
                state.tat[gate] = self._fold(state, gate, groups, now=now, horizon=horizon)
            if gate in state.learned:
                state.up[gate] = self._fold_mirror(state, gate, groups, now=now)
        state.leases = {name: Lease(*lease) for name, lease in leases.items() if lease[0] > now}
        return True

    @staticmethod
    def _amount(gate: str, group: Past) -> int:
        return {"tpm": group.tokens, "ipm": group.images}.get(gate, group.requests)

    def _fold(self, state: State, gate: str, groups: Sequence[Past], *, now: int, horizon: int) -> int:
        single = gate in ("rpm", "rpd")
        tat = horizon + state.slack(gate) + (0 if gate == "rpd" else MINUTE)
        for group in groups:
            if units := self._amount(gate, group):
                cost = units * state.price(gate, 1) if single else state.price(gate, units) + group.requests
                at = min(group.at_us, now)
                tat = min(max(tat, at) + cost, at + max(state.slack(gate), 0 if single else cost))
        return tat

    def _fold_mirror(self, state: State, gate: str, groups: Sequence[Past], *, now: int) -> int:
        up = 0
        for group in groups:
            if units := self._amount(gate, group):
                up = max(up, min(group.at_us, now)) + state.mirror_price(gate, units)
        return min(up, now + MINUTE)

    def _extend(self, lease: Lease, until: int) -> None:
        lease.expiry_us = max(lease.expiry_us, until)

    def _relimit(self, state: State, now: int, limits: Limits, learned: dict[str, int]) -> None:
        open_before = [gate for gate in WINDOW_US if state.limit(gate) is None]
        state.limits, state.learned = limits, learned
        for gate in open_before:
            if state.limit(gate) is not None:
                state.tat[gate] = max(state.tat.get(gate, 0), now)
        state.changes += 1

    def _seats(self, state: State) -> float:
        cap = state.limits.max_in_flight
        return min(math.inf if cap is None else cap, math.inf if state.window is None else math.floor(state.window))

    def _seat_wait(self, state: State, now: int) -> float:
        most, live = self._seats(state), len(state.leases)
        if live < most:
            return 0
        if most < 1:
            return math.inf
        return sorted(lease.expiry_us for lease in state.leases.values())[live - int(most)] - now

    def _wait(self, state: State, now: int, units: Mapping[str, int], *, seat_us: float) -> tuple[float, BlockedBy | None]:
        waits: list[tuple[float, BlockedBy]] = [(state.cool_until - now, BlockedBy.COOLDOWN), (seat_us, BlockedBy.IN_FLIGHT)]
        for gate, asked in units.items():
            limit = state.limit(gate)
            if asked and limit is not None:
                wait = state.tat.get(gate, 0) + state.price(gate, asked) - state.slack(gate) - now
                waits.append((math.inf if asked > limit else wait, BlockedBy(gate)))
            if asked and gate in state.learned:
                allowance = max(0, MINUTE // 2 - state.mirror_price(gate, asked))
                waits.append((state.up.get(gate, 0) - now - allowance, BlockedBy.UPSTREAM))
        longest = max(waits, key=lambda pair: pair[0])
        return longest if longest[0] > 0 else (0, None)

    def _charge(self, state: State, now: int, lease: Lease) -> None:
        state.changes += 1
        lease.paid_at, lease.change, lease.before = now, state.changes, dict(state.tat)
        lease.paid, lease.mirrored = {}, {}
        for gate, asked in units_of(lease).items():
            if asked and state.limit(gate) is not None:
                lease.paid[gate] = state.price(gate, asked)
                state.tat[gate] = max(state.tat.get(gate, 0), now) + lease.paid[gate]
            if asked and gate in state.learned:
                lease.mirrored[gate] = state.mirror_price(gate, asked)
                state.up[gate] = max(state.up.get(gate, 0), now) + lease.mirrored[gate]

    def _refund(self, state: State, now: int, lease: Lease) -> None:
        for gate, cost in lease.paid.items():
            if lease.change == state.changes:
                state.tat[gate] = lease.before.get(gate, 0)
            else:
                state.tat[gate] -= min(cost, max(0, lease.paid_at + cost - now))
        for gate, cost in lease.mirrored.items():
            state.up[gate] -= min(cost, max(0, lease.paid_at + cost - now))
        if lease.change >= 0:
            state.changes += 1

"""Reference model of the limiter in plain Python without Redis; the property tests compare limiter.lua with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from models.keys.keys import Limits
from workers.limiter.requests import AdmitRequest, BlockedBy, Grant, Learned, PastCharges, Report

MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
LATE = AHEAD = 500_000
ALIKE = 1_500_000
WINDOW_US = {"rpm": MINUTE, "tpm": MINUTE, "ipm": MINUTE, "rpd": DAY}
PACED = ("rpm", "tpm", "ipm")
MIRRORED = ("rpm", "tpm")


def units_of(ask: AdmitRequest | Lease) -> dict[str, int]:
    return {"rpm": 1, "tpm": ask.tokens, "ipm": ask.images, "rpd": 1}


def price(units: int, limit: int) -> int:
    return math.ceil(units * MINUTE / limit)


@dataclass
class Lease:
    expiry_us: int
    tokens: int
    images: int
    charge: Charge | None = None


@dataclass
class Charge:
    """sums: of the minute, with this one, by gate."""

    at: int
    units: dict[str, int]
    sums: dict[str, int] = field(default_factory=dict)


@dataclass
class Tally:
    """The admitted charges for the limits of one window. A slot counts until its end has left the window."""

    slot_us: int
    window_us: int
    charges: list[Charge] = field(default_factory=list)

    def leaves_at(self, charge: Charge) -> int:
        return (charge.at // self.slot_us + 1) * self.slot_us + self.window_us

    def drop_old(self, now: int) -> None:
        self.charges = [charge for charge in self.charges if self.leaves_at(charge) > now]

    def total(self, gate: str) -> int:
        return sum(charge.units[gate] for charge in self.charges)

    def wait(self, gate: str, asked: int, *, limit: int, now: int) -> int:
        excess = self.total(gate) + asked - limit
        for charge in sorted(self.charges, key=lambda charge: charge.at) if excess > 0 else ():
            excess -= charge.units[gate]
            if excess <= 0:
                return self.leaves_at(charge) - now
        return 0

    def has_closed_slots(self) -> bool:
        newest = max((charge.at // self.slot_us for charge in self.charges), default=0)
        return any(charge.units["rpm"] for charge in self.charges if charge.at // self.slot_us < newest)


@dataclass
class State:
    limits: Limits
    learned: dict[str, int]
    minutes: Tally = field(default_factory=lambda: Tally(100_000, MINUTE + LATE))
    days: Tally = field(default_factory=lambda: Tally(300_000_000, DAY + LATE))
    pace: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)
    drains: dict[str, int] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    window: float | None = None
    cut_at: int | None = None
    cool_until: int = 0

    def limit(self, gate: str) -> int | None:
        own: int | None = getattr(self.limits, gate)
        return self.learned.get(gate) if own is None else own

    def tally(self, gate: str) -> Tally:
        return self.days if gate == "rpd" else self.minutes

    def evened(self, gate: str) -> list[tuple[dict[str, int], int]]:
        """The pace and the mirror, each with its limit, as far as they are known."""
        limit, learned = self.limit(gate), self.learned.get(gate)
        own = [(self.pace, limit)] if limit is not None and gate in PACED else []
        return own + ([(self.up, learned)] if learned is not None else [])

    def is_unknown(self) -> bool:
        return self.limit("rpm") is None and self.limit("tpm") is None and self.limits.max_in_flight is None


class Model:
    """One meter. `now` is passed to every step; None as state is amnesia."""

    def __init__(self) -> None:
        self.state: State | None = None

    def enter(self, now: int) -> State | None:
        if self.state:
            self.state.minutes.drop_old(now)
            self.state.days.drop_old(now)
            for gate, pace in self.state.pace.items():
                self.state.pace[gate] = min(pace, now + MINUTE + AHEAD)
            for gate, up in self.state.up.items():
                self.state.up[gate] = min(up, now + MINUTE)
            for gate, until in self.state.drains.items():
                self.state.drains[gate] = min(until, now + HOUR)
            self.state.leases = {name: lease for name, lease in self.state.leases.items() if lease.expiry_us > now}
        return self.state

    def lose(self, key: str) -> None:
        """The limiter detects the loss of its state, unless the deleted key was empty anyway."""
        if state := self.state:
            parts = {"leases": bool(state.leases), "costs": bool(state.leases)}
            parts |= {"minutes": state.minutes.has_closed_slots(), "days": state.days.has_closed_slots()}
            if parts.get(key, True):
                self.state = None

    def admit(self, now: int, asks: Sequence[AdmitRequest], lease_us: int) -> Grant:
        state = self.enter(now)
        if state is None:
            return Grant(0, 0, BlockedBy.NO_STATE)
        for admitted, ask in enumerate(asks):
            if ask.dispatch_id not in state.leases:
                wait, blocked_by = self._wait(state, now, units_of(ask), slot_us=self._slot_wait(state, now))
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
        wait, blocked_by = self._wait(state, now, units_of(lease), slot_us=0)
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
        if lease and lease.charge and not report.sent:
            self._refund(state, now, lease.charge)
        if lease and report.good and state.window is not None:
            state.window = min(10_000, state.window + (1 if state.cut_at is None else 1 / state.window))
        changed = False
        for gate in MIRRORED:
            if gate in limits and limits[gate] != state.learned.get(gate):
                state.learned[gate] = limits[gate]
                changed = True
            reset_ms = resets[gate]
            if (
                reset_ms and 0 < reset_ms <= 86_400_000 and gate in state.learned
                and not self._is_all_ours(state, now, gate, reset_ms * 1000, lease.charge if lease else None)
            ):  # fmt: skip
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
        state.limits = limits
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
        past: Sequence[PastCharges], day: Sequence[PastCharges], leases: Mapping[str, tuple[int, int, int]],
    ) -> bool:  # fmt: skip
        if self.enter(now):
            return False
        state = self.state = State(limits, dict(learned), window=window, cut_at=None if window is None else 0)
        if window is None and state.is_unknown():
            state.window = 1
        state.cool_until = cool_until if cool_until > now else 0
        for tally, groups in ((state.minutes, past), (state.days, day)):
            for group in sorted(groups, key=lambda one: one.at_us):
                units = {"rpm": group.requests, "tpm": group.tokens, "ipm": group.images, "rpd": group.requests}
                tally.charges.append(Charge(min(group.at_us, now), units))
        for charge in state.minutes.charges:
            for gate in state.learned:
                if asked := charge.units[gate]:
                    state.up[gate] = max(state.up.get(gate, 0), charge.at) + price(asked, state.learned[gate])
        self.enter(now)
        state.leases = {name: Lease(*lease) for name, lease in leases.items() if lease[0] > now}
        return True

    def _extend(self, lease: Lease, until: int) -> None:
        lease.expiry_us = max(lease.expiry_us, until)

    def _slots(self, state: State) -> float:
        cap = state.limits.max_in_flight
        return min(math.inf if cap is None else cap, math.inf if state.window is None else math.floor(state.window))

    def _slot_wait(self, state: State, now: int) -> float:
        limit, live = self._slots(state), len(state.leases)
        if live < limit:
            return 0
        if limit < 1:
            return math.inf
        return sorted(lease.expiry_us for lease in state.leases.values())[live - int(limit)] - now

    def _wait(self, state: State, now: int, units: Mapping[str, int], *, slot_us: float) -> tuple[float, BlockedBy | None]:
        waits: list[tuple[float, BlockedBy]] = [(state.cool_until - now, BlockedBy.COOLDOWN), (slot_us, BlockedBy.IN_FLIGHT)]
        for gate, asked in units.items():
            limit = state.limit(gate)
            if asked and limit is not None:
                wait = state.tally(gate).wait(gate, asked, limit=limit, now=now)
                waits.append((math.inf if asked > limit else wait, BlockedBy(gate)))
                waits.append((state.pace.get(gate, 0) - AHEAD - now, BlockedBy(gate)))
            if asked and gate in state.learned:
                allowance = max(AHEAD, MINUTE // 2 - price(asked, state.learned[gate]))
                waits.append((state.up.get(gate, 0) - now - allowance, BlockedBy.UPSTREAM))
        longest = max(waits, key=lambda pair: pair[0])
        return longest if longest[0] > 0 else (0, None)

    def _charge(self, state: State, now: int, lease: Lease) -> None:
        lease.charge = Charge(now, units_of(lease))
        state.minutes.charges.append(lease.charge)
        state.days.charges.append(lease.charge)
        lease.charge.sums = {gate: state.minutes.total(gate) for gate in MIRRORED}
        for gate, asked in lease.charge.units.items():
            for tat, limit in state.evened(gate) if asked else ():
                tat[gate] = max(tat.get(gate, 0), now) + price(asked, limit)

    def _is_all_ours(self, state: State, now: int, gate: str, reset_us: int, charge: Charge | None) -> bool:
        if charge is None:
            return False
        both = [price(units, state.learned[gate]) for units in (charge.sums[gate], state.minutes.total(gate))]
        if reset_us < min(both) - 3 * ALIKE:
            state.drains[gate] = now + HOUR
        return state.drains.get(gate, 0) <= now and min(both) - ALIKE <= reset_us <= max(both) + ALIKE

    def _refund(self, state: State, now: int, charge: Charge) -> None:
        for gate, asked in charge.units.items():
            for tat, limit in state.evened(gate):
                if gate in tat:
                    cost = price(asked, limit)
                    tat[gate] -= min(cost, max(0, charge.at + cost - now))
            charge.units[gate] = 0

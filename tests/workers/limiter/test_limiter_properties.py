"""limiter.lua on a real Valkey against the reference model, with invariants of any history. HYPOTHESIS_PROFILE=nightly runs many more."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from models.keys.keys import Limits
from tests.upstream.meters import Window
from tests.workers.limiter.limiter_model import DAY, LATE, MINUTE, WINDOW_US, Lease, Model, units_of
from workers.limiter.limiter import Limiter, keys
from workers.limiter.requests import AdmitRequest, BlockedBy, CredentialModel, Grant, PastCharges, Report

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
settings.register_profile("limiter", max_examples=200, stateful_step_count=40)
settings.register_profile("nightly", max_examples=1000, stateful_step_count=60)
COMMON = settings(
    settings.get_profile("nightly" if NIGHTLY else "limiter"),
    deadline=None, derandomize=False, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
START_US = 1_767_000_000_000_000
KEYS = ("state", "leases", "costs", "minutes", "days")
METER, PROBE = CredentialModel(7, "gpt-{4o}"), CredentialModel(8, "probe")

limits = st.builds(
    Limits,
    rpm=st.sampled_from([None, 1, 2, 7, 120, 600]), tpm=st.sampled_from([None, 1, 100, 1000, 60_000]),
    ipm=st.sampled_from([None, None, 1, 3]), rpd=st.sampled_from([None, None, 1, 2, 3, 40]),
    max_in_flight=st.sampled_from([None, 1, 3, 10]),
)  # fmt: skip
names = st.sampled_from("abcdkl")
tokens = st.one_of(st.integers(0, 12), st.integers(0, 1100), st.sampled_from([500, 30_000, 60_000, 60_001]))
asks = st.builds(AdmitRequest, names, tokens, st.sampled_from([0, 0, 0, 1, 2, 4]))
reports = st.builds(
    Report,
    sent=st.booleans(), good=st.booleans(), pushed_back=st.sampled_from([False, False, True]),
    limit_requests=st.sampled_from([None, None, -1, 0, 5, 120]), limit_tokens=st.sampled_from([None, None, 0, 1000, 60_000]),
    reset_requests_ms=st.sampled_from([None, -1, 0, 12, 20_000, 50_000, 90_000_000]),
    reset_tokens_ms=st.sampled_from([None, 9, 45_000, 360_000]), cooldown_ms=st.sampled_from([None, None, 0, 500, 20_000]),
)  # fmt: skip
pauses_us = st.one_of(
    st.integers(1, 2000), st.integers(1, 3_000_000), st.integers(1, 3 * MINUTE), st.sampled_from([1000, MINUTE, DAY // 3, 2 * DAY])
)


class Ledger:
    """Every charge that was not refunded, and the time of the last change of each limit."""

    def __init__(self) -> None:
        self.charges: list[tuple[int, str, dict[str, int]]] = []
        self.since: dict[str, tuple[int | None, int]] = {}

    def note_limits(self, now: int, current: dict[str, int | None]) -> None:
        for gate, limit in current.items():
            if gate not in self.since or self.since[gate][0] != limit:
                self.since[gate] = (limit, now)

    def give_back(self, dispatch_id: str) -> None:
        mine = [i for i, charge in enumerate(self.charges) if charge[1] == dispatch_id]
        del self.charges[mine[-1]]

    def check(self) -> None:
        """Charges under a limit stay within it, also with earlier charges: of times without a limit, and of times before a state loss."""
        for gate, (limit, since) in self.since.items():
            width = WINDOW_US[gate] + LATE
            for end in {at for at, _, units in self.charges if at > since and units[gate]} if limit is not None else ():
                assert sum(units[gate] for at, _, units in self.charges if end - width < at <= end) <= (limit or 0), gate

    def groups(self, now: int, *, width_us: int) -> list[PastCharges]:
        """The charges as the rebuilder reads them: in groups, each at its end time."""
        sums: dict[int, list[int]] = {}
        for at, _, units in self.charges:
            total = sums.setdefault(min(now, (at // width_us + 1) * width_us), [0, 0, 0])
            total[:] = total[0] + 1, total[1] + units["tpm"], total[2] + units["ipm"]
        return [PastCharges(at, *total) for at, total in sums.items()]


class LimiterMachine(RuleBasedStateMachine):
    client: ClassVar[redis.Redis]

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.now = START_US
        self.limiter = Limiter(self.client, clock=lambda: self.now)
        self.model = Model()
        self.ledger = Ledger()
        self.limits = Limits()

    @initialize(wanted=limits)
    def begin(self, wanted: Limits) -> None:
        self.limits = wanted
        self.rebuild(width_us=1)

    @rule(batch=st.lists(asks, min_size=1, max_size=6), lease_ms=st.sampled_from([500, 30_000, 400_000]))
    def admit(self, batch: list[AdmitRequest], lease_ms: int) -> None:
        self.limiter.peek_many([METER])  # drops what has expired, so that only the denial itself could change something
        before, held = self.dump(), set(self._live())
        expected = self.model.admit(self.now, batch, lease_ms * 1000)

        grant = self.limiter.admit(METER, batch, lease_ms=lease_ms)

        assert expected == grant
        for ask in batch[: grant.admitted]:
            if ask.dispatch_id not in held:
                held.add(ask.dispatch_id)
                self.ledger.charges.append((self.now, ask.dispatch_id, units_of(ask)))
        if grant.admitted == 0:
            assert before == self.dump()
        if grant.blocked_by and grant.blocked_by != BlockedBy.NO_STATE:
            self.check_wait(grant, batch[grant.admitted])

    @rule(name=names, lease_ms=st.sampled_from([500, 30_000]))
    def charge_again(self, name: str, lease_ms: int) -> None:
        expected = self.model.charge_again(self.now, name, lease_ms * 1000)

        assert expected == self.limiter.charge_again(METER, name, lease_ms=lease_ms)
        if expected.admitted:
            assert self.model.state
            self.ledger.charges.append((self.now, name, units_of(self.model.state.leases[name])))

    @rule(held=st.lists(names), lease_ms=st.sampled_from([500, 30_000]))
    def renew(self, held: list[str], lease_ms: int) -> None:
        assert self.model.renew(self.now, held, lease_ms * 1000) == self.limiter.renew(METER, held, lease_ms=lease_ms)

    @rule(name=names, report=reports)
    def release(self, name: str, report: Report) -> None:
        lease = self._live().get(name)
        if lease and lease.charge and not report.sent:
            self.ledger.give_back(name)

        assert self.model.release(self.now, name, report) == self.limiter.release(METER, name, report)

    @rule(wanted=limits)
    def configure(self, wanted: Limits) -> None:
        self.limits = wanted
        assert self.model.configure(self.now, wanted) == self.limiter.configure(METER, wanted)

    @rule(ms=st.sampled_from([1, 700, 100_000]))
    def pause(self, ms: int) -> None:
        assert self.model.pause(self.now, ms * 1000) == self.limiter.pause(METER, until_in_ms=ms)

    @rule()
    def unpause(self) -> None:
        assert self.model.unpause(self.now) == self.limiter.unpause(METER)

    @rule(us=pauses_us)
    def time_passes(self, us: int) -> None:
        self.now += us

    @rule(key=st.sampled_from([*KEYS, "all"]))
    def lose(self, key: str) -> None:
        if key == "all":
            self.limiter.forget(METER)
            self.model.lose("state")
        else:
            self.client.delete(keys(METER)[KEYS.index(key)])
            self.model.lose(key)

    @rule(width_us=st.sampled_from([1, 1_000_000, 10_000_000]))
    def rebuild(self, width_us: int) -> None:
        past, day = self.ledger.groups(self.now, width_us=width_us), self.ledger.groups(self.now, width_us=60 * width_us)
        leases = {"l": (self.now + 5_000_000, 3, 0), "k": (self.now - 1, 3, 0)}
        expected = self.model.init(
            self.now, self.limits, learned={}, window=None, cool_until=0, past=past, day=day, leases=leases
        )  # fmt: skip

        assert expected == self.limiter.init(METER, self.limits, past=past, day=day, leases=leases)

    @invariant()
    def windows_hold(self) -> None:
        if self.model.state:
            self.ledger.note_limits(self.now, {gate: self.model.state.limit(gate) for gate in WINDOW_US})
        self.ledger.check()

    @invariant()
    def headroom_is_reported(self) -> None:
        state = self.model.enter(self.now)
        (room,) = self.limiter.peek_many([METER])
        assert (state is None) == (room is None)
        if state and room:
            assert len(state.leases) == room.in_flight
            assert 0 <= room.share <= 1

    def check_wait(self, grant: Grant, ask: AdmitRequest) -> None:
        """Without other requests the wait suffices; two milliseconds less do not."""
        if grant.wake_in_ms is None:
            return
        assert 0 == self.ask_later(ask, (grant.wake_in_ms - 2) * 1000).admitted if grant.wake_in_ms > 2 else True
        assert 1 == self.ask_later(ask, grant.wake_in_ms * 1000).admitted

    def ask_later(self, ask: AdmitRequest, us: int) -> Grant:
        for source, target in zip(keys(METER), keys(PROBE), strict=True):
            self.client.delete(target)
            self.client.copy(source, target)
        return Limiter(self.client, clock=lambda: self.now + us).admit(PROBE, [ask], lease_ms=1000)

    def dump(self) -> list[object]:
        state, leases, costs, *slots = keys(METER)
        held = self.client.zrange(leases, 0, -1, withscores=True)
        return [self.client.hgetall(state), held, self.client.hgetall(costs), *[self.client.lrange(key, 0, -1) for key in slots]]

    def _live(self) -> dict[str, Lease]:
        state = self.model.enter(self.now)
        return dict(state.leases) if state else {}


def test_lua_and_the_plain_model_agree_on_everything(redis_client: redis.Redis) -> None:
    LimiterMachine.client = redis_client
    run_state_machine_as_test(LimiterMachine, settings=COMMON)


# A pause of 0 waits just as long as it must: that keeps every window full.
steps = st.tuples(st.one_of(st.just(0), st.just(0), pauses_us), st.integers(1, 60), st.integers(0, 3), st.integers(1, 8))
histories = st.tuples(st.lists(steps, max_size=30), st.lists(steps, min_size=1, max_size=30))


@settings(COMMON)
@given(
    before_and_after=histories, wanted=limits.map(lambda one: replace(one, max_in_flight=None)),
    width_us=st.sampled_from([1, 10**6, 10**7]),
)  # fmt: skip
def test_a_rebuilt_state_is_never_looser_than_the_lost_one(
    redis_client: redis.Redis, before_and_after: tuple[list[tuple[int, int, int, int]], ...], wanted: Limits, width_us: int
) -> None:
    now, ledger = START_US, Ledger()
    limiter = Limiter(redis_client, clock=lambda: now)
    ledger.note_limits(START_US - 1, {gate: getattr(wanted, gate) for gate in WINDOW_US})
    for history in before_and_after:
        past, day = ledger.groups(now, width_us=width_us), ledger.groups(now, width_us=60 * width_us)
        limiter.forget(METER)
        limiter.init(METER, wanted, window=10_000, past=past, day=day)
        wake_in_ms = 0
        for us, share, images, count in history:
            now += us or wake_in_ms * 1000
            batch = [AdmitRequest(f"{len(ledger.charges)}-{i}", (wanted.tpm or 1000) // share, images) for i in range(count)]
            grant = limiter.admit(METER, batch, lease_ms=1)
            wake_in_ms = grant.wake_in_ms or 1
            ledger.charges += [(now, ask.dispatch_id, units_of(ask)) for ask in batch[: grant.admitted]]

    ledger.check()


class Upstream:
    """A bucket of one minute's capacity, as OpenAI's headers show it: reset is its TAT − now."""

    def __init__(self, rpm: int, tpm: int) -> None:
        self.per_unit_us = {"rpm": MINUTE / rpm, "tpm": MINUTE / tpm}
        self.rpm, self.tpm = rpm, tpm
        self.tat: dict[str, float] = {}

    def call(self, now: int, ask: AdmitRequest) -> None:
        for gate, units in (("rpm", 1), ("tpm", ask.tokens)):
            self.tat[gate] = max(self.tat.get(gate, 0), now) + units * self.per_unit_us[gate]
            assert self.tat[gate] <= now + MINUTE + 1, f"429: {gate}"

    def headers(self, now: int) -> Report:
        requests, tokens = (max(0, math.floor((self.tat.get(gate, 0) - now) / 1000)) for gate in ("rpm", "tpm"))
        return Report(good=True, limit_requests=self.rpm, limit_tokens=self.tpm, reset_requests_ms=requests, reset_tokens_ms=tokens)


@settings(COMMON)
@given(
    rpm=st.sampled_from([1, 2, 3, 60, 500]), tpm=st.sampled_from([100, 5000, 30_000]),
    sizes=st.lists(st.floats(0, 1), min_size=1, max_size=40), takes_ms=st.sampled_from([0, 300, 20_000]), operator=st.booleans(),
)  # fmt: skip
def test_alone_on_a_key_the_mirror_never_binds(
    redis_client: redis.Redis, rpm: int, tpm: int, sizes: list[float], takes_ms: int, operator: bool
) -> None:
    now, upstream = START_US, Upstream(rpm, tpm)
    limiter = Limiter(redis_client, clock=lambda: now)
    limiter.forget(METER)
    limiter.init(METER, Limits(rpm=rpm, tpm=tpm) if operator else Limits(), learned_rpm=rpm, learned_tpm=tpm)
    answers: list[tuple[int, str]] = []
    for n, size in enumerate(sizes):
        ask = AdmitRequest(str(n), int(size**3 * tpm))
        while not (grant := limiter.admit(METER, [ask], lease_ms=600_000)).admitted:
            assert grant.blocked_by != BlockedBy.UPSTREAM
            assert grant.wake_in_ms
            now += grant.wake_in_ms * 1000
            for due in [one for one in answers if one[0] <= now]:
                answers.remove(due)
                limiter.release(METER, due[1], upstream.headers(now))
        upstream.call(now, ask)
        answers.append((now + takes_ms * 1000, ask.dispatch_id))


def saturate(redis_client: redis.Redis, wanted: Limits, *, tokens: Sequence[int], lasting_us: int) -> list[tuple[int, int]]:
    """(time, tokens) of all admissions under endless demand."""
    now, sent = START_US, list[tuple[int, int]]()
    limiter = Limiter(redis_client, clock=lambda: now)
    limiter.init(METER, wanted)
    while now < START_US + lasting_us:
        batch = [AdmitRequest(f"{len(sent) + i}", tokens[(len(sent) + i) % len(tokens)]) for i in range(8)]
        grant = limiter.admit(METER, batch, lease_ms=1)
        sent += [(now, ask.tokens) for ask in batch[: grant.admitted]]
        now += (grant.wake_in_ms or 0) * 1000
    return sent


@pytest.mark.parametrize("takes_ms", [0, 300, 20_000])
@pytest.mark.parametrize("is_stamped_at_the_end", [False, True])
@pytest.mark.parametrize(
    ("wanted", "tokens"), [(Limits(rpm=600), 0), (Limits(tpm=60_000), 500), (Limits(rpm=600, tpm=90_000), 100)], ids=str
)
def test_alone_on_a_key_whose_upstream_counts_an_exact_minute_all_of_it_is_used(
    redis_client: redis.Redis, wanted: Limits, tokens: int, takes_ms: int, is_stamped_at_the_end: bool
) -> None:
    now, sent = START_US, list[tuple[int, int]]()
    limiter = Limiter(redis_client, clock=lambda: now)
    limiter.init(METER, wanted)
    meters = {"rpm": Window(wanted.rpm or 10**9, 60.0), "tpm": Window(wanted.tpm or 10**9, 60.0)}
    answers: deque[tuple[int, str, Report]] = deque()

    def shown() -> Report:
        left = {name: -int(-meter.used(now / 1e6) * 60_000 // meter.limit) for name, meter in meters.items()}
        return Report(
            good=True, limit_requests=wanted.rpm, limit_tokens=wanted.tpm,
            reset_requests_ms=left["rpm"] if wanted.rpm else None, reset_tokens_ms=left["tpm"] if wanted.tpm else None,
        )  # fmt: skip

    while now < START_US + 3 * MINUTE:
        while answers and answers[0][0] <= now:
            _, name, first = answers.popleft()
            limiter.release(METER, name, shown() if is_stamped_at_the_end else first)
        ask = AdmitRequest(str(len(sent)), tokens)
        grant = limiter.admit(METER, [ask], lease_ms=600_000)
        if grant.admitted:
            for name, units in (("rpm", 1), ("tpm", tokens)):
                assert not meters[name].wait_s(units, now / 1e6), f"429: {name}"
                meters[name].take(units, now / 1e6)
            sent.append((now, tokens))
            answers.append((now + takes_ms * 1000, ask.dispatch_id, shown()))
        now += min((grant.wake_in_ms or 0) * 1000, max(1, answers[0][0] - now) if answers else MINUTE)

    within = [each for at, each in sent if at >= START_US + MINUTE]
    used = len(within) / 2 / wanted.rpm if wanted.rpm else sum(within) / 2 / (wanted.tpm or 1)
    assert used >= 0.97


@pytest.mark.parametrize("per_s", [2, 4, 5, 8])
def test_limiter_leaves_room_for_another_user_of_the_key(redis_client: redis.Redis, per_s: int) -> None:
    """Another client takes a part of a bucket of ten a second; our queue never empties."""
    now, others, ours = START_US, START_US, 0
    upstream, limiter = Upstream(600, 10**9), Limiter(redis_client, clock=lambda: now)
    limiter.init(METER, Limits(rpm=600))
    while now < START_US + 5 * MINUTE:
        while others <= now:
            upstream.call(others, AdmitRequest("other", 0))  # raises where it finds no room
            others += 1_000_000 // per_s
        grant = limiter.admit(METER, [AdmitRequest(str(ours), 0)], lease_ms=600_000)
        if grant.admitted:
            upstream.call(now, AdmitRequest(str(ours), 0))
            limiter.release(METER, str(ours), upstream.headers(now))
            ours += 1
        now += (grant.wake_in_ms or 0) * 1000

    assert 0.98 < (ours + 5 * 60 * per_s) / (5 * 600) < 1.2


def most_within(width_us: int, charges: Sequence[tuple[int, int]]) -> int:
    most, total, oldest = 0, 0, 0
    for at, units in charges:
        total += units
        while charges[oldest][0] <= at - width_us:
            total -= charges[oldest][1]
            oldest += 1
        most = max(most, total)
    return most


@pytest.mark.parametrize(
    ("wanted", "tokens", "used"),
    [
        (Limits(rpm=3), [0], 0.95),
        (Limits(rpm=600), [0], 0.98),
        (Limits(tpm=30_000), [2000], 0.95),
        (Limits(tpm=60_000), [500], 0.98),
        (Limits(tpm=200_000), [4000], 0.98),
        (Limits(tpm=30_000), [30_000], 0.95),
        (Limits(rpm=600, tpm=400_000), [2000, 700, 3100, 200], 0.98),
        (Limits(rpd=200, max_in_flight=200), [0], 0.95),
    ],
    ids=str,
)
def test_nearly_all_of_a_limit_is_used_and_never_more(redis_client: redis.Redis, wanted: Limits, tokens: list[int], used: float) -> None:
    limit = wanted.tpm or wanted.rpm or wanted.rpd or 0
    window_us, windows = (DAY, 3) if wanted.rpd else (MINUTE, 30)

    sent = saturate(redis_client, wanted, tokens=tokens, lasting_us=windows * window_us)

    charges = [(at, each if wanted.tpm else 1) for at, each in sent]
    assert sum(units for _, units in charges) >= used * windows * limit
    assert most_within(window_us + LATE, charges) <= limit
    assert most_within(MINUTE, [(at, 1) for at, _ in sent]) <= (wanted.rpm or math.inf)


@pytest.mark.parametrize(("wanted", "tokens"), [(Limits(rpm=600), 1), (Limits(tpm=60_000), 500), (Limits(tpm=30_000), 2000)], ids=str)
def test_under_full_load_half_a_second_sees_half_a_seconds_worth(redis_client: redis.Redis, wanted: Limits, tokens: int) -> None:
    worth = max(tokens, (wanted.tpm or wanted.rpm or 0) // 120)

    sent = saturate(redis_client, wanted, tokens=[tokens], lasting_us=10 * MINUTE)

    # After an idle time, and after a wait for the window, the head start comes on top.
    warm = [one for one in sent if START_US + 1_000_000 <= one[0] < START_US + MINUTE]
    assert most_within(MINUTE // 120, warm) <= worth
    assert most_within(MINUTE // 120, sent) <= 2 * worth

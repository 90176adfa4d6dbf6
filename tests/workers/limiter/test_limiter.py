"""Each rule of the limiter, on a real Valkey with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local.embedded_servers import Valkey
from models.keys.keys import Limits
from models.platform.errors import LimiterUnavailable
from workers.limiter.limiter import Limiter, keys
from workers.limiter.requests import AdmitRequest, BlockedBy, CredentialModel, Grant, Headroom, Learned, PastCharges, Report
from workers.runner.run_attempt import LATE_S

METER = CredentialModel(1, "gpt-4o")
START_US = 1_767_000_000_000_000
SECOND, MINUTE, DAY = 1_000_000, 60_000_000, 86_400_000_000
YES = Grant(1, None, None)
BLIND = Grant(0, 0, BlockedBy.NO_STATE)


class Meterside:
    """One meter and its clock, with short forms for the keyword arguments of the limiter."""

    def __init__(self, client: redis.Redis) -> None:
        self.now = START_US
        self.limiter = Limiter(client, clock=lambda: self.now)
        self.client = client

    def has(
        self, limits: Limits, *, window: float | None = None, past: Sequence[PastCharges] = (), day: Sequence[PastCharges] = ()
    ) -> None:
        self.limiter.init(METER, limits, window=window, past=past, day=day)

    def asks(self, *names: str, tokens: int = 0, images: int = 0, lease_ms: int = 30_000) -> Grant:
        return self.limiter.admit(METER, [AdmitRequest(name, tokens, images) for name in names], lease_ms=lease_ms)

    def room(self) -> Headroom:
        (room,) = self.limiter.peek_many([METER])
        assert room
        return room

    def release(self, name: str, report: Report | None = None) -> None:
        self.limiter.release(METER, name, report or Report())


@pytest.fixture
def meter(redis_client: redis.Redis) -> Iterator[Meterside]:
    yield Meterside(redis_client)


def many(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


# Rates


def test_half_a_seconds_worth_may_go_ahead_and_then_one_after_the_other(meter: Meterside) -> None:
    meter.has(Limits(rpm=600))

    grant = meter.asks(*many("a", 20))

    assert Grant(6, 100, BlockedBy.RPM) == grant
    meter.now += 100_000
    assert Grant(1, 100, BlockedBy.RPM) == meter.asks(*many("b", 20))


def test_an_idle_time_saves_nothing_up(meter: Meterside) -> None:
    meter.has(Limits(rpm=600))
    meter.asks("a")
    meter.now += 30 * SECOND

    assert 6 == meter.asks(*many("b", 20)).admitted


def test_the_returned_wait_is_enough_and_not_wasteful(meter: Meterside) -> None:
    meter.has(Limits(rpm=60))
    meter.asks("a")
    wait_ms = meter.asks("b").wake_in_ms or 0

    meter.now += (wait_ms - 2) * 1000
    assert 0 == meter.asks("b").admitted
    meter.now += 2000
    assert YES == meter.asks("b")


@pytest.mark.parametrize(
    ("limits", "window_us", "slot_us"),
    [(Limits(rpm=1), MINUTE, SECOND // 10), (Limits(rpd=1), DAY, 5 * MINUTE), (Limits(ipm=1), MINUTE, SECOND // 10)],
    ids=str,
)
def test_a_limit_of_one_means_one_each_window_even_if_its_call_starts_late(
    meter: Meterside, limits: Limits, window_us: int, slot_us: int
) -> None:
    meter.has(limits)
    assert YES == meter.asks("a", images=1, lease_ms=1)
    whole_us = window_us + int(LATE_S * SECOND)

    meter.now += whole_us
    wait_us = (meter.asks("b", images=1).wake_in_ms or 0) * 1000
    assert 0 < wait_us <= slot_us
    meter.now += wait_us
    assert YES == meter.asks("b", images=1)


def test_no_minute_holds_more_than_the_limit_however_it_began(meter: Meterside) -> None:
    meter.has(Limits(tpm=600))
    sent = [(meter.now, 0)]
    for n in range(200):
        grant = meter.asks(f"{n}", tokens=n * n % 601, lease_ms=1)
        sent += [(meter.now, n * n % 601)] * grant.admitted
        meter.now += (grant.wake_in_ms or 0) * 1000

    assert all(sum(tokens for at, tokens in sent if start <= at < start + MINUTE) <= 600 for start, _ in sent)
    assert sum(tokens for _, tokens in sent) > 10_000


def test_a_large_job_waits_until_enough_of_the_oldest_has_left_the_window(meter: Meterside) -> None:
    meter.has(Limits(tpm=6000))
    for n in range(50):
        assert YES == meter.asks(f"a{n}", tokens=100, lease_ms=1)
        meter.now += SECOND

    assert Grant(0, 60_600 + 9_000 - 50_000, BlockedBy.TPM) == meter.asks("large", tokens=2000)
    assert Grant(0, 60_600 + 39_000 - 50_000, BlockedBy.TPM) == meter.asks("larger", tokens=5000)


def test_a_fresh_meter_lets_a_job_as_large_as_the_limit_go_at_once(meter: Meterside) -> None:
    meter.has(Limits(tpm=30_000))

    assert YES == meter.asks("a", tokens=30_000)


def test_after_a_large_job_its_debt_is_waited_for(meter: Meterside) -> None:
    meter.has(Limits(tpm=30_000))
    meter.asks("a", tokens=15_000)

    grant = meter.asks("b", tokens=10)

    assert BlockedBy.TPM == grant.blocked_by
    assert 29_500 == grant.wake_in_ms


def test_a_job_larger_than_the_limit_is_refused_for_good(meter: Meterside) -> None:
    meter.has(Limits(tpm=30_000, ipm=2))
    meter.limiter.pause(METER, until_in_ms=1000)

    assert Grant(0, None, BlockedBy.TPM) == meter.asks("a", tokens=30_001)
    assert Grant(0, None, BlockedBy.IPM) == meter.asks("a", images=3)


def test_a_whole_day_may_go_at_once(meter: Meterside) -> None:
    meter.has(Limits(rpd=10, max_in_flight=99))

    grant = meter.asks(*many("a", 11))

    assert (10, BlockedBy.RPD) == (grant.admitted, grant.blocked_by)


def test_jobs_without_images_do_not_wait_for_images(meter: Meterside) -> None:
    meter.has(Limits(ipm=1, max_in_flight=9))
    meter.asks("a", images=1)

    assert BlockedBy.IPM == meter.asks("b", images=1).blocked_by
    assert YES == meter.asks("c")


# All or nothing


def test_a_denial_charges_nothing_and_names_the_limit_that_blocks_longest(meter: Meterside) -> None:
    meter.has(Limits(rpm=60, tpm=6000))
    meter.asks("a", tokens=3000)
    before = meter.client.hgetall(keys(METER)[0])

    assert BlockedBy.TPM == meter.asks("b", tokens=100).blocked_by
    assert before == meter.client.hgetall(keys(METER)[0])


def test_the_order_is_strict_a_small_job_does_not_overtake(meter: Meterside) -> None:
    meter.has(Limits(tpm=6000))
    meter.asks("a", tokens=1001)
    meter.now += 15 * SECOND
    asks = [AdmitRequest("large", 5000), AdmitRequest("small", 1)]

    assert 0 == meter.limiter.admit(METER, asks, lease_ms=1000).admitted


def test_asking_twice_is_the_same_as_once(meter: Meterside) -> None:
    meter.has(Limits(rpm=60, max_in_flight=1))

    assert YES == meter.asks("a", lease_ms=1000)
    assert YES == meter.asks("a", lease_ms=9000)
    meter.now += 5 * SECOND
    assert 1 == meter.room().in_flight


def test_several_meters_are_asked_in_one_go(meter: Meterside) -> None:
    other = CredentialModel(2, "gpt-4o")
    meter.has(Limits(rpm=1))
    wants = [(METER, [AdmitRequest("a", 0), AdmitRequest("b", 0)]), (other, [AdmitRequest("c", 0)])]

    assert [Grant(1, 60_600, BlockedBy.RPM), BLIND] == meter.limiter.admit_many(wants, lease_ms=1000)
    assert [{"a"}, set()] == meter.limiter.renew_many([(METER, ["a", "b"]), (other, ["c"])], lease_ms=1000)
    assert [] == meter.limiter.admit_many([], lease_ms=1000)


# In flight


def test_a_full_house_waits_for_the_first_lease_to_end(meter: Meterside) -> None:
    meter.has(Limits(max_in_flight=2))
    meter.asks("a", lease_ms=9000)
    meter.asks("b", lease_ms=4000)

    assert Grant(0, 4000, BlockedBy.IN_FLIGHT) == meter.asks("c")
    meter.now += 4 * SECOND
    assert YES == meter.asks("c")


def test_lowered_in_flight_limit_waits_for_leases_to_end(meter: Meterside) -> None:
    meter.has(Limits(max_in_flight=3))
    for name, lease_ms in (("a", 1000), ("b", 2000), ("c", 3000)):
        meter.asks(name, lease_ms=lease_ms)
    meter.limiter.configure(METER, Limits(max_in_flight=2))

    assert Grant(0, 2000, BlockedBy.IN_FLIGHT) == meter.asks("d")


def test_release_frees_the_in_flight_slot(meter: Meterside) -> None:
    meter.has(Limits(max_in_flight=1))
    meter.asks("a")
    meter.release("a")

    assert YES == meter.asks("b")


def test_renewed_lease_stays_and_an_expired_lease_is_reported(meter: Meterside) -> None:
    meter.has(Limits(max_in_flight=5))
    meter.asks("a", "b", lease_ms=10_000)
    meter.now += 5 * SECOND
    meter.limiter.renew(METER, ["a"], lease_ms=10_000)
    meter.now += 6 * SECOND

    assert {"a"} == meter.limiter.renew(METER, ["a", "b"], lease_ms=10_000)
    assert 1 == meter.client.hlen(keys(METER)[2])


# Charging again and giving back


def test_a_late_claim_pays_again_for_the_same_lease(meter: Meterside) -> None:
    meter.has(Limits(rpm=60))
    meter.asks("a")

    assert BlockedBy.RPM == meter.limiter.charge_again(METER, "a", lease_ms=30_000).blocked_by
    meter.now += 5 * SECOND
    assert YES == meter.limiter.charge_again(METER, "a", lease_ms=30_000)
    assert 0 == meter.asks("b").admitted
    assert 1 == meter.room().in_flight


def test_claim_without_a_lease_must_give_up(meter: Meterside) -> None:
    meter.has(Limits(rpm=60))

    assert Grant(0, None, None) == meter.limiter.charge_again(METER, "gone", lease_ms=30_000)


def test_unsent_call_is_refunded_once(meter: Meterside) -> None:
    meter.has(Limits(rpm=60, tpm=60_000))
    meter.asks("a", tokens=60_000)
    meter.release("a", Report(sent=False))
    meter.release("a", Report(sent=False))

    assert YES == meter.asks("b", tokens=60_000)
    assert 0 == meter.asks("c", tokens=1).admitted


def test_refund_equals_the_charge(meter: Meterside) -> None:
    meter.has(Limits(rpm=600))
    meter.asks(*many("a", 5))
    meter.release("a4", Report(sent=False))

    assert 2 == meter.asks("b", "c", "d").admitted


def test_refund_frees_the_window_of_its_charge(meter: Meterside) -> None:
    meter.has(Limits(tpm=1000))
    for name in "abc":
        meter.asks(name, tokens=300, lease_ms=90_000)
        meter.now += 20 * SECOND
    assert 0 == meter.asks("d", tokens=400).admitted
    meter.release("b", Report(sent=False))
    meter.now += 25 * SECOND

    assert 0 == meter.asks("d", tokens=701).admitted
    assert YES == meter.asks("d", tokens=700)


def test_late_release_of_an_expired_entry_changes_nothing(meter: Meterside) -> None:
    meter.has(Limits(rpm=2))
    meter.asks("a", lease_ms=300_000)
    meter.now += 100 * SECOND
    meter.asks("b")
    meter.now += 30 * SECOND
    meter.asks("c")
    meter.release("a", Report(sent=False))
    meter.now += 30 * SECOND

    assert 0 == meter.asks("d").admitted


def test_an_expired_lease_gives_nothing_back(meter: Meterside) -> None:
    meter.has(Limits(rpm=1))
    meter.asks("a", lease_ms=1000)
    meter.now += SECOND
    meter.release("a", Report(sent=False))

    assert Grant(0, 59_600, BlockedBy.RPM) == meter.asks("b")


def test_drained_units_are_not_refunded(meter: Meterside) -> None:
    meter.has(Limits(rpm=60))
    meter.asks("a")
    meter.now += 2 * SECOND
    meter.asks("b")
    meter.release("a", Report(sent=False))

    assert 0 == meter.asks("c").admitted


# Amnesia and rebuild


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (3,), (4,), range(5)], ids=["state", "leases", "costs", "minutes", "days", "all"])
def test_nothing_goes_after_a_loss_until_it_was_rebuilt(meter: Meterside, lost: Sequence[int]) -> None:
    meter.has(Limits(rpm=600))
    for name in "abc":
        meter.asks(name, lease_ms=900_000)
        meter.now += 5 * MINUTE if name == "a" else SECOND
    meter.client.delete(*[keys(METER)[i] for i in lost])

    assert BLIND == meter.asks("d")
    assert BLIND == meter.limiter.charge_again(METER, "c", lease_ms=1000)
    assert [None] == meter.limiter.peek_many([METER])
    assert not meter.limiter.configure(METER, Limits())
    meter.has(Limits(rpm=1))
    assert YES == meter.asks("d")


def test_a_rebuild_brings_the_mirror_of_the_upstream_back(meter: Meterside) -> None:
    past = [PastCharges(START_US - 90 * SECOND, 5, 0, 0), PastCharges(START_US, 40, 0, 0)]
    meter.limiter.init(METER, Limits(), learned_rpm=60, past=past)

    assert Grant(0, 11_000, BlockedBy.UPSTREAM) == meter.asks("a")


def test_a_rebuild_is_the_whole_truth(meter: Meterside) -> None:
    meter.has(Limits(rpm=600))
    meter.asks("a")
    meter.client.delete(keys(METER)[1])
    meter.has(Limits(rpm=1))

    assert 1.0 == meter.room().share


def test_the_first_rebuilder_wins(meter: Meterside) -> None:
    assert meter.limiter.init(METER, Limits(rpm=1))
    assert not meter.limiter.init(METER, Limits(rpm=600))

    assert 1 == meter.asks("a", "b").admitted


def test_a_rebuild_brings_history_leases_and_cooldown_back(meter: Meterside) -> None:
    leases = {"a": (START_US + 5 * SECOND, 10, 0), "old": (START_US, 10, 0)}
    past = [PastCharges(START_US, 600, 50, 0)]
    meter.limiter.init(METER, Limits(rpm=600, max_in_flight=9), past=past, leases=leases, cooldown_until_us=START_US + 7 * SECOND)

    assert {"a"} == meter.limiter.renew(METER, ["a", "old"], lease_ms=1)
    assert Grant(0, 60_600, BlockedBy.RPM) == meter.asks("b")
    meter.now += 60_600_000
    assert meter.limiter.pause(METER, until_in_ms=7000)
    assert Grant(0, 7000, BlockedBy.COOLDOWN) == meter.asks("b")
    assert meter.limiter.unpause(METER)
    assert YES == meter.asks("b")


def test_history_of_a_day_leaves_exactly_the_rest_of_the_daily_limit(meter: Meterside) -> None:
    meter.has(Limits(rpd=100, max_in_flight=99), day=[PastCharges(START_US - hour * 60 * MINUTE, 10, 0, 0) for hour in range(2)])

    grant = meter.asks(*many("a", 90))

    assert (80, BlockedBy.RPD) == (grant.admitted, grant.blocked_by)
    assert 22 * 3600_000 < (grant.wake_in_ms or 0) + 3600_000 < 24.2 * 3600_000


def test_a_call_that_runs_since_before_a_loss_is_not_given_back(meter: Meterside) -> None:
    meter.limiter.init(METER, Limits(rpm=1), past=[PastCharges(START_US, 1, 0, 0)], leases={"a": (START_US + MINUTE, 10, 0)})
    meter.release("a", Report(sent=False))

    assert 0 == meter.asks("b").admitted


def test_release_without_state_keeps_learned_limits(meter: Meterside) -> None:
    learned = meter.limiter.release(METER, "a", Report(limit_requests=500, cooldown_ms=2000))

    assert learned.changed
    assert (500, None, START_US + 2 * SECOND) == (learned.learned_rpm, learned.learned_tpm, learned.cooldown_until_us)


def test_a_restarted_server_gets_the_script_again(meter: Meterside) -> None:
    meter.has(Limits())
    meter.client.script_flush()

    grants = meter.limiter.admit_many([(METER, [AdmitRequest("a", 0)]), (CredentialModel(2, "x"), [AdmitRequest("b", 0)])], lease_ms=1000)

    assert [YES, BLIND] == grants


def test_a_silent_server_means_line_unavailable(redis_client: redis.Redis, valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as broken:
        limiter = Limiter(broken)
        redis_client.set(keys(METER)[0], "not a hash")
        with pytest.raises(LimiterUnavailable):
            limiter.admit(METER, [AdmitRequest("a", 0)], lease_ms=1000)
    unreachable = Limiter(redis.Redis(port=1, retry=Retry(NoBackoff(), 0)))
    with pytest.raises(LimiterUnavailable):
        unreachable.forget(METER)
    with pytest.raises(LimiterUnavailable):
        unreachable.peek_many([METER])


# Learning


def test_learned_limits_fill_only_unset_limits(meter: Meterside) -> None:
    meter.has(Limits(rpm=60))
    meter.asks("a", tokens=1)
    learned = meter.limiter.release(METER, "a", Report(good=True, limit_requests=600, limit_tokens=1000))

    assert Learned(None, 600, 1000, cooldown_until_us=0, changed=True) == learned
    assert BlockedBy.RPM == meter.asks("b", tokens=1).blocked_by
    assert Grant(0, None, BlockedBy.TPM) == meter.asks("b", tokens=1001)


def test_learned_limit_may_fall_and_azures_values_are_ignored(meter: Meterside) -> None:
    meter.has(Limits())
    meter.asks("a")
    first = meter.limiter.release(METER, "a", Report(limit_requests=600))
    lower = meter.limiter.release(METER, "a", Report(limit_requests=60))
    azure = meter.limiter.release(METER, "a", Report(limit_requests=-1, limit_tokens=0, reset_requests_ms=-1, reset_tokens_ms=0))

    assert [(600, True), (60, True), (60, False)] == [(one.learned_rpm, one.changed) for one in (first, lower, azure)]


def test_someone_else_on_the_key_is_seen_in_the_headers(meter: Meterside) -> None:
    meter.has(Limits())
    meter.asks("a")
    meter.release("a", Report(good=True, limit_requests=60, reset_requests_ms=50_000))

    assert Grant(0, 21_000, BlockedBy.UPSTREAM) == meter.asks("b")


def test_an_unknown_credential_starts_slowly_and_doubles_each_round(meter: Meterside) -> None:
    meter.has(Limits())
    admitted = []
    for turn in range(4):
        names = many(f"{turn}-", 50)
        admitted.append(meter.asks(*names).admitted)
        for name in names[: admitted[-1]]:
            meter.release(name, Report(good=True))

    assert [1, 2, 4, 8] == admitted


def test_known_limits_need_no_window_until_the_first_push_back(meter: Meterside) -> None:
    meter.has(Limits(rpm=60_000))
    meter.asks(*many("a", 10))
    learned = meter.limiter.release(METER, "a0", Report(pushed_back=True))

    assert (5, True) == (learned.window, learned.changed)
    assert BlockedBy.IN_FLIGHT == meter.asks("b").blocked_by


def test_new_window_is_half_of_the_calls_in_flight(meter: Meterside) -> None:
    meter.has(Limits(rpm=60_000), window=100)
    meter.asks(*many("a", 10))

    assert 5 == meter.limiter.release(METER, "a0", Report(pushed_back=True)).window


def test_the_window_is_halved_at_most_once_a_second_and_grows_by_one_a_round(meter: Meterside) -> None:
    meter.has(Limits(rpm=60_000))
    meter.asks(*many("a", 16))
    windows = [meter.limiter.release(METER, f"a{n}", Report(pushed_back=True)).window for n in range(3)]
    meter.now += SECOND
    windows.append(meter.limiter.release(METER, "a3", Report(pushed_back=True)).window)
    windows += [meter.limiter.release(METER, f"a{n}", Report(good=True)).window for n in range(4, 10)]

    assert [8, 8, 8, 4, 4, 4, 4, 4, 5, 5] == windows


def test_the_window_stops_growing_at_ten_thousand(meter: Meterside) -> None:
    meter.has(Limits(), window=10_000)
    meter.asks("a")

    assert 10_000 == meter.limiter.release(METER, "a", Report(good=True)).window


def test_cooldown_stops_all_jobs_until_its_end(meter: Meterside) -> None:
    meter.has(Limits(rpm=600))
    meter.asks("a")
    learned = meter.limiter.release(METER, "a", Report(cooldown_ms=2500))
    meter.limiter.pause(METER, until_in_ms=1000)

    assert (START_US + 2_500_000, True) == (learned.cooldown_until_us, learned.changed)
    assert Grant(0, 2500, BlockedBy.COOLDOWN) == meter.asks("b")
    meter.now += 2_500_000
    assert YES == meter.asks("b")


def test_new_limits_of_the_operator_hold_at_once(meter: Meterside) -> None:
    meter.has(Limits())
    assert meter.limiter.configure(METER, Limits(rpm=60, max_in_flight=3))

    assert 3 == meter.room().free
    assert Grant(1, 500, BlockedBy.RPM) == meter.asks("a", "b")


def test_new_limit_counts_earlier_calls(meter: Meterside) -> None:
    meter.has(Limits(max_in_flight=99))
    meter.asks(*many("a", 40), tokens=10)
    meter.now += 10 * SECOND
    meter.limiter.configure(METER, Limits(rpm=600, tpm=401, rpd=41))

    assert Grant(0, 50_600, BlockedBy.TPM) == meter.asks("b", tokens=2)
    assert Grant(1, 24 * 3600_000 + 300_500 - 10_000, BlockedBy.RPD) == meter.asks("c", "d")


def test_a_lowered_limit_waits_until_the_window_holds_it_too(meter: Meterside) -> None:
    meter.has(Limits(rpm=600))
    for name in "abc":
        meter.asks(name)
        meter.now += 10 * SECOND
    meter.limiter.configure(METER, Limits(rpm=2))

    assert Grant(0, 40_600, BlockedBy.RPM) == meter.asks("d")


# The clock


def test_a_clock_that_was_ahead_for_a_while_does_not_stop_the_line(meter: Meterside) -> None:
    meter.has(Limits(rpm=60, tpm=6000, max_in_flight=1))
    meter.now += DAY
    meter.asks("a", tokens=50, lease_ms=30_000)
    meter.release("a", Report(cooldown_ms=5000, limit_requests=60, reset_requests_ms=50_000))
    meter.asks("b", tokens=50, lease_ms=30_000)
    meter.limiter.unpause(METER)
    meter.asks("c", tokens=50, lease_ms=30_000)
    meter.now -= DAY

    waits = [meter.asks("d", tokens=50).wake_in_ms or 0]
    for _ in range(3):
        meter.now += waits[-1] * 1000
        waits.append(meter.asks("d", tokens=50).wake_in_ms or 0)
    assert sum(waits) < 130_000
    assert 0 == waits[-1]


def test_entries_of_a_fast_clock_leave_the_window_on_time(meter: Meterside) -> None:
    meter.has(Limits(rpm=3, rpd=3))
    meter.now += DAY // 2
    for name in "abc":
        assert YES == meter.asks(name)
        meter.now += 20 * SECOND
    meter.now -= DAY // 2 + 1 * MINUTE

    assert Grant(0, DAY // 1000 + 300_500, BlockedBy.RPD) == meter.asks("d")
    meter.limiter.configure(METER, Limits(rpm=3))
    meter.now += MINUTE
    assert Grant(0, 600, BlockedBy.RPM) == meter.asks("d")
    meter.now += SECOND
    assert YES == meter.asks("d")


def test_clock_step_refunds_nothing_twice(meter: Meterside) -> None:
    meter.has(Limits(max_in_flight=9))
    meter.asks("a", tokens=900)
    meter.now -= 20 * SECOND
    meter.asks("b")
    meter.now += 20 * SECOND
    meter.asks("c", tokens=50)
    meter.release("a", Report(sent=False))
    meter.limiter.configure(METER, Limits(tpm=1000))

    assert BlockedBy.TPM == meter.asks("d", tokens=51).blocked_by
    assert YES == meter.asks("d", tokens=50)


def test_cooldown_set_by_a_fast_clock_keeps_its_length(meter: Meterside) -> None:
    meter.has(Limits(rpm=60))
    meter.now += DAY
    meter.limiter.pause(METER, until_in_ms=5000)
    meter.now -= DAY

    assert Grant(0, 5000, BlockedBy.COOLDOWN) == meter.asks("a")


def test_a_lease_taken_while_the_clock_was_ahead_ends_in_its_usual_time(meter: Meterside) -> None:
    meter.has(Limits(max_in_flight=1))
    meter.now += DAY
    meter.asks("a", lease_ms=30_000)
    meter.now -= DAY

    assert Grant(0, 30_000, BlockedBy.IN_FLIGHT) == meter.asks("b")


def test_a_client_that_decodes_its_replies_is_fine_too(valkey: Valkey, meter: Meterside) -> None:
    meter.has(Limits(rpm=1))
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        limiter = Limiter(client, clock=lambda: START_US)

        assert Grant(1, 60_600, BlockedBy.RPM) == limiter.admit(METER, [AdmitRequest("a", 1), AdmitRequest("b", 1)], lease_ms=9000)
        assert {"a"} == limiter.renew(METER, ["a"], lease_ms=9000)


def test_without_a_clock_of_ours_the_servers_counts(redis_client: redis.Redis) -> None:
    limiter = Limiter(redis_client)
    limiter.init(METER, Limits(rpm=600, max_in_flight=1))
    assert YES == limiter.admit(METER, [AdmitRequest("a", 1)], lease_ms=60_000)
    seconds, micros = (int(part) for part in redis_client.time())

    expiry = redis_client.zscore(keys(METER)[1], "a") or 0
    assert 59_000_000 < expiry - (seconds * SECOND + micros) <= 60_000_000


# Room and keys


def test_headroom_is_the_rest_of_the_scarcest_limit(meter: Meterside) -> None:
    meter.has(Limits(rpm=600, tpm=60_000, max_in_flight=4))
    assert Headroom(in_flight=0, free=4, wait_ms=0, share=1.0) == meter.room()
    meter.asks("a", tokens=30_000)

    room = meter.room()

    assert Headroom(in_flight=1, free=3, wait_ms=29_500, share=0.5) == room
    meter.now += 40 * SECOND
    meter.asks("b", tokens=15_000)
    meter.now += 21 * SECOND
    assert 0.75 == meter.room().share
    meter.now += MINUTE
    assert 1.0 == meter.room().share


@pytest.mark.parametrize("model", ["ft:gpt-4o:org::id", "{x}", "}{", "%7B", "", "модель 模型", "a\nb\0c", "\ud800"])
def test_any_model_name_makes_its_own_keys_in_one_slot(redis_client: redis.Redis, model: str) -> None:
    limiter, odd = Limiter(redis_client), CredentialModel(3, model)
    assert limiter.init(odd, Limits(rpm=1))

    assert YES == limiter.admit(odd, [AdmitRequest("a", 1)], lease_ms=1000)
    assert BlockedBy.NO_STATE == limiter.admit(CredentialModel(3, model + "x"), [AdmitRequest("a", 1)], lease_ms=1000).blocked_by
    assert all(key.count("{") == key.count("}") == 1 for key in keys(odd))


def test_forgotten_state_and_idle_state_go_away(meter: Meterside) -> None:
    meter.has(Limits(rpm=600))
    for name in "abc":
        meter.asks(name, lease_ms=900_000)
        meter.now += 5 * MINUTE if name == "a" else SECOND

    assert all(0 < meter.client.ttl(key) <= 26 * 3600 for key in keys(METER))
    meter.now += 2 * DAY
    meter.room()
    assert [keys(METER)[0].encode()] == meter.client.keys("*")
    meter.limiter.forget(METER)
    assert [] == meter.client.keys("*")

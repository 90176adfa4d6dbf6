"""The benchmarks' own arithmetic and pictures: a figure is worth what its reckoning is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.measure import plots, report
from bench.measure.figure import reported
from bench.measure.load import Wanted
from bench.measure.plots import Line, Panel
from bench.peers.contests import Fair
from bench.peers.peer import PROMPT, Work, user_of
from bench.suites.fairness import Called, jain_while_all_wait
from bench.suites.latency import gaps
from tests.upstream.journal import Call


def called(flow: str, at: float, *, came: float = 0) -> Called:
    return Called(flow, 1.0, came, at)


def call(at: float, ended_at: float) -> Call:
    return Call(
        n=0, at=at, key="", model="", path="", text="", headers={}, tokens=0, images=0, is_stream=False, in_flight_at_start=0,
        request_id="", ended_at=ended_at,
    )  # fmt: skip


def test_a_line_that_serves_in_turn_has_a_jain_index_of_one_but_for_its_last_turn() -> None:
    early = [called("heavy", n / 10) for n in range(9)]
    order = [*early, *(called(who, n, came=0 if who == "heavy" else 1) for n in range(2, 52) for who in ("heavy", "light0", "light1"))]

    assert 1.0 == pytest.approx(jain_while_all_wait(order), abs=0.001)


def test_a_line_that_serves_the_flood_first_has_the_worst_jain_index() -> None:
    order = [*(called("heavy", n) for n in range(20)), called("light0", 30, came=1), called("light1", 31, came=1)]

    assert 1 / 3 == pytest.approx(jain_while_all_wait(order))


def test_a_gap_is_from_the_answer_that_frees_a_slot_to_the_call_that_takes_it() -> None:
    calls = [call(at=n * 1.1, ended_at=n * 1.1 + 1) for n in range(5)]  # one at a time, each a tenth of a second after the last

    # The first gap is of the cold start.
    assert [pytest.approx(0.1)] * 3 == gaps(calls, 1)


def test_the_upstream_can_tell_whose_a_job_is() -> None:
    body = next(Wanted(0, "sk-x", jobs=1, prefix="light", prompt=PROMPT).requests())

    assert b"Say hello to light0." in body
    assert "light0" == user_of(PROMPT.format(user="light0"))


def test_jobs_go_round_the_users() -> None:
    assert ["light0", "light1", "light0"] == Work(3, users=2, prefix="light").names()


def draw(to: Path) -> bytes:
    fair = Fair(1.0, [1.0], [called("heavy", 1.0), called("light0", 2.0), called("heavy", 3.0)], light_came=0.5)
    plots.fairness({"nowserving": fair, "others": fair}, to=to / "fairness.svg")
    panels = [Panel("Jobs", "waiting", "ms", [Line("step", [1_000, 1_000_000], [9.0, 10.0])]) for _ in range(3)]
    plots.growth(panels, to=to / "growth.svg")
    return (to / "fairness.svg").read_bytes() + (to / "growth.svg").read_bytes()


def test_the_same_numbers_give_the_same_picture_to_the_byte(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "one"), draw(tmp_path / "two")

    assert b"<svg" in first
    assert first == second


def test_the_page_shows_a_picture_above_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "docs" / "benchmarks.md")
    about = {"took_s": 60.0, "load_before": 0.1, "servers": {"Valkey": "9"}, "speeds": [10.0, 17.5]}
    report.write({"Growth": [reported("step", "9.0 ms")]}, {"Growth": tmp_path / "growth.svg"}, **about)  # type: ignore[arg-type]  # as named

    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "Speed of one core before and after: 10.0 and 17.5 million" in page
    assert page.index("![Growth](growth.svg)") < page.index("| step | 9.0 ms |")
    assert (tmp_path / "docs" / "growth.svg").exists()

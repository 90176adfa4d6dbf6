"""Conversations through a real pacer and real workers: each answer saw exactly the turns before it, in the order of submission.

HYPOTHESIS_PROFILE=nightly (`make chaos`) has 50 conversations of 10 turns.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from uuid import UUID

import pytest

from models.keys.keys import Key
from tests.support.programs import processes
from tests.support.programs.live_jobs import caller, wait_ended, wake_lane
from tests.support.programs.processes import Stack
from tests.support.queue_tools import query, submit
from tests.upstream.chat import echo

WORKERS = 8
TALKS, TURNS = (50, 10) if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else (16, 6)


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with processes.running(tmp_path_factory.mktemp("stack"), retry_base_s=0.05, pause_s=0.3) as made:
        made.pacer()
        made.workers(processes=2, threads=WORKERS // 2)
        yield made


@pytest.fixture(autouse=True)
def fresh_upstream(stack: Stack) -> None:
    stack.upstream.reset()


def ask(who: Key, talk: str, said: str, *, streamed: bool = False) -> UUID:
    body = {"model": "m", "messages": [{"role": "user", "content": said}], **({"stream": True} if streamed else {})}
    weight = -(-len(said.encode()) // 4) + 4
    return submit(who, request=json.dumps(body).encode(), conversation=talk, flow=talk, turn_tokens=weight, streamed=streamed)


def before(*turns: str) -> list[list[str]]:
    """What is told of these turns that were answered."""
    return [one for said in turns for one in (["user", said], ["assistant", echo(said)])]


@pytest.mark.slow
def test_every_answer_saw_exactly_the_turns_before_it(stack: Stack) -> None:
    who = caller("sk-talks")
    stack.upstream.behave("sk-talks", delay=[0, 0.02])
    said = [[f"{talk} 说 {turn} 🍵" for turn in range(TURNS)] for talk in range(TALKS)]
    jobs = [ask(who, f"talk {talk}", said[talk][turn]) for turn in range(TURNS) for talk in range(TALKS)]
    wake_lane(who)
    rows = wait_ended(jobs, within_s=120, stack=stack)
    calls = stack.upstream.calls()

    assert {"succeeded"} == {row.status for row in rows}
    assert TALKS * TURNS == len(calls)
    by_talk = defaultdict(list)
    for call in calls:
        by_talk[call.text.split()[0]].append(call)
    for talk in range(TALKS):
        assert said[talk] == [call.text for call in by_talk[str(talk)]], "strictly in the order of submission"
        assert [before(*said[talk][:turn]) for turn in range(TURNS)] == [call.before for call in by_talk[str(talk)]]
        ends = [call.ended_at or 0.0 for call in by_talk[str(talk)]]
        assert all(end <= later.at for end, later in zip(ends, by_talk[str(talk)][1:], strict=False)), "one in flight"


def test_streamed_answers_are_remembered_like_others(stack: Stack) -> None:
    who = caller("sk-streams")
    jobs = [ask(who, "s", f"turn {n}", streamed=n != 1) for n in range(3)]
    wake_lane(who)
    wait_ended(jobs, stack=stack)

    assert [[], before("turn 0"), before("turn 0", "turn 1")] == [call.before for call in stack.upstream.calls()]


def test_refused_turn_is_left_out_of_the_history_and_the_next_turn_runs(stack: Stack) -> None:
    who = caller("sk-refused")
    jobs = [ask(who, "r", said) for said in ("turn 0", "turn 1 [[fake:status=400]]", "turn 2")]
    wake_lane(who)
    rows = wait_ended(jobs, stack=stack)

    assert ["succeeded", "failed", "succeeded"] == [row.status for row in rows]
    assert before("turn 0") == stack.upstream.calls()[-1].before


def test_retried_turn_sends_the_same_history(stack: Stack) -> None:
    who = caller("sk-again")
    jobs = [ask(who, "a", "turn 0")]
    wake_lane(who)
    wait_ended(jobs, stack=stack)
    stack.upstream.behave("sk-again", {"status": 500, "times": 1})
    jobs = [ask(who, "a", "turn 1")]
    wake_lane(who)
    wait_ended(jobs, stack=stack)

    assert [before("turn 0")] * 2 == [call.before for call in stack.upstream.calls()[1:]]
    (row,) = query("SELECT tokens, history_tokens FROM job WHERE id = :id", id=jobs[0])
    assert {row.tokens} == {one.tokens for one in query("SELECT tokens FROM attempt WHERE job_id = :id", id=jobs[0])}

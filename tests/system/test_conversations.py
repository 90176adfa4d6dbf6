"""Conversations through a real pacer and real workers: each call contains exactly the turns before it, in the order of submission.

With HYPOTHESIS_PROFILE=nightly (`make chaos`) there are 50 conversations of 10 turns.
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
CONVERSATIONS, TURNS = (50, 10) if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else (16, 6)


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with processes.running(tmp_path_factory.mktemp("stack"), retry_base_s=0.05, pause_s=0.3) as stack:
        stack.pacer()
        stack.workers(processes=2, threads=WORKERS // 2)
        yield stack


@pytest.fixture(autouse=True)
def fresh_upstream(stack: Stack) -> None:
    stack.upstream.reset()


def ask(key: Key, conversation: str, prompt: str, *, streamed: bool = False) -> UUID:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **({"stream": True} if streamed else {})}
    weight = -(-len(prompt.encode()) // 4) + 4
    return submit(
        key, request=json.dumps(body).encode(), conversation=conversation, flow=conversation, turn_tokens=weight, streamed=streamed
    )


def history(*turns: str) -> list[list[str]]:
    """The history that a call contains after these answered turns."""
    return [message for turn in turns for message in (["user", turn], ["assistant", echo(turn)])]


@pytest.mark.slow
def test_each_call_contains_exactly_the_turns_before_it(stack: Stack) -> None:
    key = caller("sk-talks")
    stack.upstream.behave("sk-talks", delay=[0, 0.02])
    prompts = [[f"{conversation} 说 {turn} 🍵" for turn in range(TURNS)] for conversation in range(CONVERSATIONS)]
    jobs = [ask(key, f"talk {conversation}", prompts[conversation][turn]) for turn in range(TURNS) for conversation in range(CONVERSATIONS)]
    wake_lane(key)
    rows = wait_ended(jobs, within_s=120, stack=stack)
    calls = stack.upstream.calls()

    assert {"succeeded"} == {row.status for row in rows}
    assert CONVERSATIONS * TURNS == len(calls)
    calls_by_conversation = defaultdict(list)
    for call in calls:
        calls_by_conversation[call.text.split()[0]].append(call)
    for conversation in range(CONVERSATIONS):
        assert prompts[conversation] == [call.text for call in calls_by_conversation[str(conversation)]], (
            "strictly in the order of submission"
        )
        assert [history(*prompts[conversation][:turn]) for turn in range(TURNS)] == [
            call.before for call in calls_by_conversation[str(conversation)]
        ]
        ends = [call.ended_at or 0.0 for call in calls_by_conversation[str(conversation)]]
        assert all(end <= later.at for end, later in zip(ends, calls_by_conversation[str(conversation)][1:], strict=False)), "one in flight"


def test_streamed_answers_become_history(stack: Stack) -> None:
    key = caller("sk-streams")
    jobs = [ask(key, "s", f"turn {n}", streamed=n != 1) for n in range(3)]
    wake_lane(key)
    wait_ended(jobs, stack=stack)

    assert [[], history("turn 0"), history("turn 0", "turn 1")] == [call.before for call in stack.upstream.calls()]


def test_refused_turn_is_left_out_of_the_history_and_the_next_turn_runs(stack: Stack) -> None:
    key = caller("sk-refused")
    jobs = [ask(key, "r", prompt) for prompt in ("turn 0", "turn 1 [[fake:status=400]]", "turn 2")]
    wake_lane(key)
    rows = wait_ended(jobs, stack=stack)

    assert ["succeeded", "failed", "succeeded"] == [row.status for row in rows]
    assert history("turn 0") == stack.upstream.calls()[-1].before


def test_retried_turn_sends_the_same_history(stack: Stack) -> None:
    key = caller("sk-again")
    jobs = [ask(key, "a", "turn 0")]
    wake_lane(key)
    wait_ended(jobs, stack=stack)
    stack.upstream.behave("sk-again", {"status": 500, "times": 1})
    jobs = [ask(key, "a", "turn 1")]
    wake_lane(key)
    wait_ended(jobs, stack=stack)

    assert [history("turn 0")] * 2 == [call.before for call in stack.upstream.calls()[1:]]
    (row,) = query("SELECT tokens, history_tokens FROM job WHERE id = :id", id=jobs[0])
    assert {row.tokens} == {attempt.tokens for attempt in query("SELECT tokens FROM attempt WHERE job_id = :id", id=jobs[0])}

"""The order in which the files of tests run: long ones first, so that no process is left alone with one at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent
# Each takes more than about 20 s, the longest first. Measured with `--durations=0`; a file that is missing here costs only time.
LONG = (
    "clients/test_after_a_wait.py",
    "test_webhooks.py",
    "faults/test_kills.py",
    "faults/test_crash_points.py",
    "faults/test_chaos.py",
    "test_bench_peers.py",
    "test_bad_input.py",
    "faults/test_stream_faults.py",
    "test_limiter_properties.py",
    "web/test_talk.py",
    "web/test_ticket.py",
    "clients/test_at_once.py",
    "test_api_server.py",
    "web/test_page_rules.py",
    "test_ops_page.py",
    "clients/test_webhooks.py",
    "clients/test_sessions_and_money.py",
    "test_openai_routes.py",
    "test_refusals.py",
    "test_up.py",
    "clients/test_leaving.py",
    "test_supervisor.py",
    "test_upstream_faults.py",
    "test_worker.py",
    "test_fuzz_tenants.py",
    "test_deep_health.py",
    "test_api_machine.py",
    "faults/test_api_crashes.py",
    "test_conversations.py",
)


def long_first(items: list[pytest.Item]) -> None:
    """Sorts the tests in place; those of one file stay together and in their order."""
    places = {ROOT / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))

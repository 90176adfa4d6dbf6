"""The order of test files: long ones first, so that no worker process runs a long file alone at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent
# Files that take more than about 20 s, the longest first. Measured with `--durations=0`; a missing file only costs time.
LONG = (
    "clients/test_after_a_wait.py",
    "system/test_webhooks.py",
    "faults/test_kills.py",
    "faults/test_crash_points.py",
    "faults/test_chaos.py",
    "bench/test_bench_peers.py",
    "api/http/test_bad_input.py",
    "faults/test_stream_faults.py",
    "workers/limiter/test_limiter_properties.py",
    "web/test_talk.py",
    "web/test_ticket.py",
    "clients/test_at_once.py",
    "api/server/test_api_server.py",
    "web/test_page_rules.py",
    "api/ops/test_page.py",
    "clients/test_webhooks.py",
    "clients/test_sessions_and_money.py",
    "system/test_openai_routes.py",
    "system/test_refusals.py",
    "deploy/test_up.py",
    "clients/test_leaving.py",
    "deploy/test_supervisor.py",
    "system/test_upstream_faults.py",
    "system/test_worker.py",
    "api/access/test_fuzz_tenants.py",
    "api/server/test_deep_health.py",
    "stateful/test_state_machine.py",
    "faults/test_api_crashes.py",
    "system/test_conversations.py",
)


def sort_long_first(items: list[pytest.Item]) -> None:
    """Sort the tests in place; the tests of one file stay together and in order."""
    places = {ROOT / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))

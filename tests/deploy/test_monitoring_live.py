"""A running stack exposes every series and label that the dashboard, the alerts and the autoscaling rule query."""

from __future__ import annotations

import http.client
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.server_process import free_port
from models.database import db
from models.keys import keys
from models.keys.keys import Key, Limits
from tests.api.server.test_api_server import serving
from tests.deploy import monitoring
from tests.support.programs import processes
from tests.support.programs.live_jobs import ask, caller
from tests.support.programs.process import until
from tests.support.queue_tools import query, store_limits
from tests.upstream.client import FakeUpstream

Shown = Mapping[str, set[str]]


def team(name: str, **limits: int) -> Key:
    """Issues a key of a pool of this name with one credential."""
    with db.begin() as session:
        pool_id = keys.create_pool(session, name)
        number = keys.add_credential(session, pool_id=pool_id, upstream_key=f"sk-of-{name}")
        store_limits(session, number, Limits(**limits))
        return keys.issue(session, name=name, pool=name)[0]


def scrape(*ports: int) -> Shown:
    """Returns the series of these programs with the names of their labels."""
    found: dict[str, set[str]] = defaultdict(set)
    for port in ports:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request("GET", "/metrics")
            for family in text_string_to_metric_families(connection.getresponse().read().decode()):
                for sample in family.samples:
                    found[sample.name] |= set(sample.labels)
    return found


def give_all_to_count(upstream: FakeUpstream, *, nowhere: int) -> None:
    """Produces every kind of event: answers, a queue behind a limit, a parked credential, an undeliverable webhook."""
    narrow, refused = team("narrow", rpm=2), team("refused")
    upstream.behave("sk-of-refused", status=401)
    ask(caller("sk-monitored"), "hello", webhook_url=f"http://127.0.0.1:{nowhere}/")
    for n in range(6):
        ask(narrow, f"one of a minute's two: {n}")
    ask(refused, "to a parked credential")


def without(shown: Shown) -> set[str]:
    return monitoring.asked_for() - set(shown)


@pytest.fixture(scope="module")
def shown(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Returns /metrics of API, pacer and workers after these events."""
    folder: Path = tmp_path_factory.mktemp("monitored")
    pacer_port, worker_port, sender_port, nowhere = (free_port() for _ in range(4))
    reach = {"webhook_allow_networks": "127.0.0.0/8", "webhook_allow_http": "true", "webhook_allow_ports": nowhere}
    with (
        processes.running(folder, **reach, pacer_metrics_port=pacer_port) as stack,
        serving(folder / "api.log", **stack.environment()) as api,
    ):
        stack.pacer()
        # Jobs and webhooks apart, as deploy/kubernetes has them.
        stack.workers(processes=1, threads=4, webhook_threads=0, worker_metrics_port=worker_port)
        stack.workers(processes=0, threads=4, webhook_threads=2, worker_metrics_port=sender_port)
        give_all_to_count(stack.upstream, nowhere=nowhere)
        api.call("GET", "/v1/jobs")
        found: Shown = {}

        def is_all_there() -> bool:
            nonlocal found
            try:
                found = scrape(api.port, pacer_port, worker_port, sender_port)
            except ConnectionRefusedError:
                return False  # one of them has not begun to listen
            return not without(found)

        try:
            until(is_all_there, what="everything shown", every_s=0.5, within_s=90)
        except TimeoutError:
            states = query("SELECT status, count(*) FROM job GROUP BY status")
            raise TimeoutError(f"never shown: {sorted(without(found))}\n{states}\n{stack.logs()}") from None
        return found


def test_every_queried_series_exists(shown: Shown) -> None:
    assert set() == without(shown)


@pytest.mark.parametrize("expression", monitoring.expressions())
def test_every_queried_label_exists(expression: str, shown: Shown) -> None:
    names = re.findall(r"nowserving_\w+", expression)
    grouped = {label.strip() for one in re.findall(r"\bby \(([^)]*)\)", expression) for label in one.split(",")}
    chosen = {label for one in re.findall(r"\{([^}]*)\}", expression) for label in re.findall(r"(\w+)(?:=~|!~|!=|=)", one)}

    # Prometheus adds where it was scraped.
    assert grouped | chosen <= {label for name in names for label in shown[name]} | {"instance", "job"}

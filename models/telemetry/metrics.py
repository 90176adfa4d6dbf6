"""Prometheus metrics and their labels: pools and models, never users, keys or jobs.

All pools of own keys share the label `own`, and models beyond MAX_MODEL_LABELS the label `other`: callers cannot create an unbounded
number of series. The processes of one program share their values through files in PROMETHEUS_MULTIPROC_DIR, which must be set before
this module is imported.
"""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy import text

from models.database import db
from models.platform.errors import Unavailable

MAX_MODEL_LABELS = 50
OTHER = "other"
OWN = "own"
_LANE = ("pool", "model")
_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)

# API
requests = Counter("nowserving_http_requests", "Requests answered.", ("method", "status"))
held_clients = Gauge("nowserving_held_clients", "Callers who wait on an open connection.", multiprocess_mode="livesum")
wrong_tokens = Counter("nowserving_wrong_tokens", "Wrong keys, tokens and passwords.", ("door",))
# Workers
wait = Histogram("nowserving_wait_seconds", "From the submit to the first call.", _LANE, buckets=_SECONDS)
service = Histogram("nowserving_service_seconds", "From the claim to the end of the attempt.", _LANE, buckets=_SECONDS)
attempts = Counter("nowserving_attempts", "Attempts that ended, by what they came to.", (*_LANE, "outcome"))
answers = Counter("nowserving_upstream_answers", "Answers of the upstream, by status.", (*_LANE, "status"))
webhooks = Counter("nowserving_webhook_attempts", "Webhooks sent, by what came of it.", ("result",))
spooled = Gauge(
    "nowserving_spooled_answers",
    "Answers on this machine's disk: waiting for Postgres, or refused by it and tried again later.",
    ("state",),
    multiprocess_mode="livemax",
)
# API, pacer and workers
ignored = Counter("nowserving_messages_ignored", "Messages over Redis that this version cannot read.", ("channel",))
# Pacer
admitted = Counter("nowserving_admitted", "Jobs let go.", _LANE)
blocked = Counter("nowserving_blocked_seconds", "Time that a lane with waiting jobs stood still, by the limit.", (*_LANE, "limit"))
waiting = Gauge("nowserving_waiting_jobs", "Jobs in line.", _LANE)
running = Gauge("nowserving_running_jobs", "Jobs admitted or running.", _LANE)
oldest = Gauge("nowserving_oldest_wait_seconds", "How long the job that waits longest has waited.", _LANE)
used = Gauge("nowserving_limit_used_ratio", "Share of a limit used in the last minute.", (*_LANE, "limit"))
parked = Gauge("nowserving_parked_credentials", "Credentials that the upstream refuses, for everything or for some model.", ("pool",))
slots = Gauge("nowserving_worker_slots", "Jobs that the workers can take at once.")
removed = Counter("nowserving_retention_removed", "Rows removed after their time.", ("kind",))
overdue = Gauge("nowserving_retention_backlog_jobs", "Ended jobs past retention_days that are still stored, counted up to 10,000.")
overdue_age = Gauge("nowserving_retention_backlog_seconds", "How long the oldest of them is past retention_days.")
unsent = Gauge("nowserving_webhooks_waiting", "Webhooks that have not arrived yet.")
unanswered = Gauge("nowserving_doorbell_unanswered_seconds", "Age of the next message in Celery's queue while a slot is free.")
up = Gauge("nowserving_server_up", "1: it answers the pacer.", ("server",))

_models: set[str] = set()


def model_label(model: str) -> str:
    """The label of a model; `other` for models beyond MAX_MODEL_LABELS."""
    if model not in _models:
        if len(_models) >= MAX_MODEL_LABELS:
            return OTHER
        _models.add(model)
    return model


def lane_labels(lane_id: int, model: str) -> tuple[str, str]:
    """The labels of a lane: pool and model."""
    try:
        return _pool_of(lane_id), model_label(model)
    except Unavailable:
        return "unknown", model_label(model)


# The pool of an own key is created with the key and serves only that key.
POOL_LABEL = f"CASE WHEN EXISTS (SELECT FROM key WHERE key.pool_id = pool.id AND key.kind = 'own') THEN '{OWN}' ELSE pool.name END"
_POOL = text(f"SELECT {POOL_LABEL} FROM lane JOIN pool ON pool.id = lane.pool_id WHERE lane.id = :id")


@lru_cache(maxsize=65_536)
def _pool_of(lane_id: int) -> str:
    with db.autocommit() as session:
        return str(session.execute(_POOL, {"id": lane_id}).scalar_one_or_none() or "unknown")

"""The usage and cost of a call: read from the upstream's answer, or estimated if that has none; stored with the result."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text

from models.billing import pricing
from models.content import token_estimate
from models.database.db import Transaction

log = logging.getLogger(__name__)

# The columns are 32 bits wide: a larger count is stored as this, and marked as estimated.
MAX_COUNT = 2**31 - 1
_NUMBER = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")


@dataclass(frozen=True)
class Usage:
    """Tokens, and the number of delivered images.

    is_known: False if neither the answer nor an estimate has a count. estimated: some counts are estimates.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    is_known: bool = True
    estimated: bool = False


def usage_of(answer: object, *, asked: Callable[[], int] | None = None, model: str = "") -> Usage:
    """The usage in an answer of any OpenAI endpoint, by the field names of chat or of images and responses; missing counts are estimated.

    A count is missing if it is no number, below 0, or 0 where the estimate is more. asked: estimates the prompt, called only if needed;
    None: nothing is estimated. Images without token counts count as images alone.
    """
    if not isinstance(answer, Mapping):
        return Usage(is_known=False)
    usage, data = answer.get("usage"), answer.get("data") if "created" in answer and "choices" not in answer else None
    pictures = len(data) if isinstance(data, list) else 0
    counts = _read_counts(usage if isinstance(usage, Mapping) else {})
    if asked is None or (pictures and not any(counts)):
        is_known = isinstance(usage, Mapping) or isinstance(data, list)
        return _fit(Usage(counts.input or counts.total or 0, counts.output or 0, pictures, is_known=is_known), model)
    read = counts.input or min(asked(), counts.total or MAX_COUNT)
    written = counts.output or (counts.total - read if counts.total else token_estimate.estimate_answer(answer, model=model))
    is_estimated = (read, written) != (counts.input or 0, counts.output or 0)
    return _fit(Usage(read, written, pictures, estimated=is_estimated), model)


def usage_of_unreadable(prompt_tokens: int, raw: bytes, *, model: str = "") -> Usage:
    """The estimated usage of a call with an unreadable answer: its prompt, and all bytes of the answer as a text."""
    written = token_estimate.estimate_text(raw.decode("utf-8", "replace"), model=model)
    return _fit(Usage(prompt_tokens, written, estimated=True), model)


def price_microusd(usage: Usage, *, model: str) -> int | None:
    """The cost in micro-USD; None if the usage or the price of the model is unknown."""
    if not usage.is_known:
        return None
    return pricing.cost_microusd(model, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, images=usage.images)


_WRITE = text("""
    INSERT INTO usage (dispatch_id, job_id, key_id, model, flow, input_tokens, output_tokens, images, estimated, cost_microusd)
    VALUES (:dispatch_id, :job_id, :key_id, :model, (SELECT flow FROM job WHERE id = :job_id), :input_tokens, :output_tokens, :images,
            :estimated,
            coalesce(:cost, (SELECT 0 FROM job WHERE id = :job_id AND reserved_microusd = 0)))
    ON CONFLICT (dispatch_id) DO NOTHING
""")


def store_usage(
    session: Transaction, usage: Usage, *, dispatch_id: UUID, job_id: UUID, key_id: int, model: str, cost_microusd: int | None
) -> None:
    """Stores the usage of a call, once however often it is called. A call reserved at a maximum cost of 0 has cost 0."""
    session.execute(
        _WRITE,
        {"dispatch_id": dispatch_id, "job_id": job_id, "key_id": key_id, "model": model, "cost": cost_microusd, **vars(usage)},
    )


def usage_cte(arrow: str) -> str:
    """SQL: the CTE `used`, which stores the usage of the calls in the CTE `arrow` as `store_usage` does; none where :is_used is false.

    arrow must have id, key_id, model, flow and reserved_microusd.
    """
    return f"""
    used AS (
        INSERT INTO usage (dispatch_id, job_id, key_id, model, flow, input_tokens, output_tokens, images, estimated, cost_microusd)
        SELECT :dispatch_id, id, key_id, model, flow, :input_tokens, :output_tokens, :images, :estimated,
               coalesce(CAST(:cost AS bigint), CASE WHEN reserved_microusd = 0 THEN 0 END)
        FROM {arrow} WHERE :is_used ON CONFLICT (dispatch_id) DO NOTHING
    )"""


class _Counts(NamedTuple):
    """The counts of an answer, None if unreadable. total: only if it adds information to the others."""

    input: int | None
    output: int | None
    total: int | None


def _read_counts(usage: Mapping[str, object]) -> _Counts:
    asked, answered = _count(usage, "input_tokens", "prompt_tokens"), _count(usage, "output_tokens", "completion_tokens")
    total = _count(usage, "total_tokens")
    if not total or (asked and answered):
        return _Counts(asked, answered, None)
    if asked:
        return _Counts(asked, max(0, total - asked), None)
    return _Counts(max(0, total - answered), answered, None) if answered else _Counts(None, None, total)


def _count(usage: Mapping[str, object], *names: str) -> int | None:
    """The first count above 0 under these names, else 0 if any is 0; None if none is readable."""
    counts = [count for name in names if (count := _whole(usage.get(name))) is not None]
    return next((count for count in counts if count), 0) if counts else None


def _whole(value: object) -> int | None:
    """12, 12.0 and "12" are 12, a broken number is rounded up; None for anything else, and below 0."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    return math.ceil(value)


def _fit(usage: Usage, model: str) -> Usage:
    """The usage within the range of the columns."""
    if max(usage.input_tokens, usage.output_tokens) <= MAX_COUNT:
        return usage
    log.warning("the upstream reported more tokens than can be stored", extra={"model": model, "stored": MAX_COUNT})
    return replace(
        usage, input_tokens=min(usage.input_tokens, MAX_COUNT), output_tokens=min(usage.output_tokens, MAX_COUNT), estimated=True
    )

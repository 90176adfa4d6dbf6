"""What a call used and cost, read from the upstream's own answer and written with the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from models import pricing
from models.db import Session


@dataclass(frozen=True)
class Usage:
    """Tokens as the upstream counted them; images as it delivered them. is_told: whether the answer says anything of it."""

    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    is_told: bool = True


def read(answer: object) -> Usage:
    """The usage in an answer of any OpenAI endpoint (chat's and images' names for the same things); zeros where it has none."""
    if not isinstance(answer, Mapping):
        return Usage(is_told=False)
    told = answer.get("usage")
    said = told if isinstance(told, Mapping) else {}
    pictures = answer.get("data") if "created" in answer and "choices" not in answer else None
    return Usage(
        input_tokens=_count(said, "input_tokens", "prompt_tokens"),
        output_tokens=_count(said, "output_tokens", "completion_tokens"),
        images=len(pictures) if isinstance(pictures, list) else 0,
        is_told=isinstance(told, Mapping) or isinstance(pictures, list),
    )


def price(usage: Usage, *, model: str) -> int | None:
    """Micro-USD; None when nobody knows: the answer does not say what it used, or no price is known for the model."""
    if not usage.is_told:
        return None
    return pricing.cost_microusd(model, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, images=usage.images)


def write(session: Session, usage: Usage, *, dispatch_id: UUID, job_id: UUID, key_id: int, model: str, cost_microusd: int | None) -> None:
    """On record once per call, however often it is written. What could cost nothing at most has cost nothing."""
    session.execute(
        _WRITE,
        {"dispatch_id": dispatch_id, "job_id": job_id, "key_id": key_id, "model": model, "cost": cost_microusd, **vars(usage)},
    )


def of(arrow: str) -> str:
    """SQL: the CTE `used`, which writes the usage of the calls in the CTE `arrow` as `write` does; none where :is_used is false.

    arrow must have id, key_id, model, flow and reserved_microusd.
    """
    return f"""
    used AS (
        INSERT INTO usage (dispatch_id, job_id, key_id, model, flow, input_tokens, output_tokens, images, cost_microusd)
        SELECT :dispatch_id, id, key_id, model, flow, :input_tokens, :output_tokens, :images,
               coalesce(CAST(:cost AS bigint), CASE WHEN reserved_microusd = 0 THEN 0 END)
        FROM {arrow} WHERE :is_used ON CONFLICT (dispatch_id) DO NOTHING
    )"""


def _count(said: Mapping[str, object], *names: str) -> int:
    for name in names:
        value = said.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
            return value
    return 0


_WRITE = text("""
    INSERT INTO usage (dispatch_id, job_id, key_id, model, flow, input_tokens, output_tokens, images, cost_microusd)
    VALUES (:dispatch_id, :job_id, :key_id, :model, (SELECT flow FROM job WHERE id = :job_id), :input_tokens, :output_tokens, :images,
            coalesce(:cost, (SELECT 0 FROM job WHERE id = :job_id AND reserved_microusd = 0)))
    ON CONFLICT (dispatch_id) DO NOTHING
""")

"""Prepares a result for its transaction: usage and price of the answer, image placeholders, tokens of a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from models.billing import usage
from models.billing.usage import Usage
from models.content import chat_messages, image_placeholders, token_estimate
from models.content.image_placeholders import ExtractedImage
from models.jobs.states import UNREADABLE, AttemptResult, JobResult, Status
from models.platform import json_reading
from workers.results.attempt_record import AttemptRecord


def usage_of(record: AttemptRecord, result: JobResult) -> tuple[Usage | None, AttemptResult]:
    """The usage that the answer states or that is estimated (None without an answer), and the attempt with its price."""
    count = record.prompt_tokens
    if result.response is None or not (result.status == Status.SUCCEEDED or _is_unreadable(result)):
        return None, record.finding
    if result.status == Status.SUCCEEDED:
        used = usage.usage_of(json_reading.json_object(result.response), asked=count, model=record.model)
    else:
        used = usage.usage_of_unreadable(count() if count else 0, result.response, model=record.model)
    cost_microusd = usage.price_microusd(used, model=record.model)
    return used, replace(record.finding, cost_microusd=cost_microusd, is_estimated=used.estimated)


def without_images(record: AttemptRecord) -> tuple[AttemptRecord, Sequence[ExtractedImage]]:
    """The record with placeholders for the images of its answer, and the images. Slow: 50 MB take a tenth of a second."""
    result = record.result
    if result is None or result.status != Status.SUCCEEDED or result.response is None:
        return record, []
    cut = image_placeholders.extract_images(result.response, result.transcript)
    message = chat_messages.reply_message(cut.response) if record.is_turn else None
    turn_tokens = token_estimate.estimate_messages([message], model=record.model) if message else 0
    return replace(record, result=replace(result, response=cut.response, transcript=cut.transcript, turn_tokens=turn_tokens)), cut.pictures


def _is_unreadable(result: JobResult) -> bool:
    """An answer that could not be parsed was kept: it may have been paid for. Of a stream that had begun, only the last event was kept."""
    return (result.error or {}).get("code") == UNREADABLE and result.transcript is None

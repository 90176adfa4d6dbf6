"""The history window of a turn: reserved when the turn is enqueued, read when it is claimed.

At that time all turns before it have ended, so the tokens of its history can be reserved exactly. A window begins at the start of the
conversation, or at a turn long after the last activity. It holds the system prompt and the newest answered turns that fit, whole turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.config.settings import settings
from models.content import token_estimate
from models.content.endpoints import CHAT
from models.content.token_estimate import TOKENS_PER_MESSAGE
from models.database.db import Transaction
from models.queue.submission import Submission

# Also for very short turns.
MAX_TURNS = 500
# For system prompts stored without a token count: a high estimate.
_BYTES_PER_TOKEN = 3


@dataclass(frozen=True)
class HistoryWindow:
    """since_turn: the first turn of the window. tokens: reserved for the history, including the system prompt."""

    since_turn: int
    tokens: int


@dataclass(frozen=True)
class History:
    """The history sent before a turn's own messages. turns: oldest first; rows: id, endpoint, request, response, attachments."""

    prompt: str
    turns: Sequence[Any]


# The window of each row of the CTE `this_turn` (id, conversation_id, turn, endpoint, lane_id, tokens, turn_tokens, created_at). A history
# that fits the model, but exceeds the key's tokens per minute, could never be sent: both are bounds.
_WINDOW_CTES = f"""
    bound AS MATERIALIZED (
        SELECT this_turn.*, coalesce(talk.fresh_after_s, :fresh_after_s) AS fresh_after_s,
               CASE WHEN talk.system_prompt IS NULL THEN CAST(:default_prompt_tokens AS bigint) WHEN talk.system_prompt = '' THEN 0
                    ELSE coalesce(talk.system_prompt_tokens, octet_length(talk.system_prompt) / {_BYTES_PER_TOKEN} + {TOKENS_PER_MESSAGE})
               END AS prompt_tokens,
               least(
                   least(coalesce(talk.context_tokens, CAST(:context_tokens AS bigint)), talk.learned_tokens) - this_turn.turn_tokens,
                   (
                       SELECT max(least(coalesce(own.tpm, usual.tpm, nullif(:default_tpm, 0)), own.learned_tpm))
                       FROM lane JOIN credential ON credential.pool_id = lane.pool_id AND credential.parked_at IS NULL
                       LEFT JOIN meter AS own ON own.credential_id = credential.id AND own.model = lane.model
                       LEFT JOIN meter AS usual ON usual.credential_id = credential.id AND usual.model = '*'
                       WHERE lane.id = this_turn.lane_id
                   ) - CAST(this_turn.tokens AS bigint)
               ) AS max_tokens
        FROM this_turn JOIN conversation AS talk ON talk.id = this_turn.conversation_id
    ), begun AS (
        SELECT bound.*,
               CASE WHEN before.since_turn IS NULL THEN bound.turn
                    WHEN bound.fresh_after_s > 0 AND bound.created_at - coalesce(before.ended_at, before.created_at)
                         > make_interval(secs => bound.fresh_after_s) THEN bound.turn
                    ELSE before.since_turn END AS since_turn
        FROM bound LEFT JOIN LATERAL (
            SELECT since_turn, created_at, ended_at FROM job
            WHERE conversation_id = bound.conversation_id AND turn < bound.turn AND since_turn IS NOT NULL ORDER BY turn DESC LIMIT 1
        ) AS before ON true
    ), history AS MATERIALIZED (
        SELECT id, since_turn, CASE WHEN endpoint <> '{CHAT}' THEN 0 ELSE prompt_tokens + coalesce((
            SELECT max(total) FROM (
                SELECT sum(turn_tokens) OVER (ORDER BY turn DESC) AS total FROM (
                    SELECT turn, turn_tokens FROM job
                    WHERE conversation_id = begun.conversation_id AND turn >= begun.since_turn AND turn < begun.turn
                    AND status = 'succeeded' AND turn_tokens IS NOT NULL ORDER BY turn DESC LIMIT :max_turns
                ) AS newest
            ) AS summed WHERE total <= begun.max_tokens - begun.prompt_tokens
        ), 0) END AS history_tokens
        FROM begun
    )"""
_OPEN = text(f"""
    WITH this_turn AS (
        SELECT NULL::uuid AS id, CAST(:conversation_id AS bigint) AS conversation_id, CAST(:turn AS int) AS turn,
               CAST(:endpoint AS text) AS endpoint, CAST(:lane_id AS bigint) AS lane_id, CAST(:tokens AS bigint) AS tokens,
               CAST(:turn_tokens AS int) AS turn_tokens, clock_timestamp() AS created_at
    ), {_WINDOW_CTES}
    SELECT since_turn, history_tokens FROM history
""")


def open_window(session: Transaction, submission: Submission, *, conversation_id: int, turn: int, lane_id: int) -> HistoryWindow:
    """The window of a new turn whose earlier turns have all ended."""
    params = {
        "conversation_id": conversation_id, "turn": turn, "endpoint": submission.endpoint, "lane_id": lane_id,
        "tokens": submission.tokens, "turn_tokens": submission.turn_tokens, **_window_params(),
    }  # fmt: skip
    row = session.execute(_OPEN, params).one()
    return HistoryWindow(row.since_turn, int(row.history_tokens))


_FIT = text(f"""
    WITH this_turn AS (
        SELECT id, conversation_id, turn, endpoint, lane_id, tokens, turn_tokens, created_at FROM job WHERE id = ANY(:ids)
    ), {_WINDOW_CTES}
    UPDATE job SET since_turn = history.since_turn, history_tokens = history.history_tokens,
           tokens = least(2147483647, job.tokens + history.history_tokens)
    FROM history WHERE job.id = history.id
""")


def fit_windows(session: Transaction, job_ids: Sequence[UUID]) -> None:
    """Reserves the history of turns that were held and are now enqueued."""
    if job_ids:
        session.execute(_FIT, {"ids": list(job_ids), **_window_params()})


def _window_params() -> dict[str, Any]:
    values = settings()
    return {
        "context_tokens": values.session_context_tokens, "default_prompt_tokens": prompt_tokens(values.session_system_prompt),
        "fresh_after_s": values.session_fresh_after_s, "default_tpm": values.default_tpm, "max_turns": MAX_TURNS,
    }  # fmt: skip


_NEWEST_CTES = """
    WITH newest AS (
        SELECT id, turn, turn_tokens, octet_length(request) + coalesce(octet_length(response), 0) AS bytes FROM job
        WHERE conversation_id = :conversation_id AND turn >= :since AND turn < :turn AND status = 'succeeded' AND turn_tokens IS NOT NULL
        ORDER BY turn DESC LIMIT :max_turns
    ), summed AS (
        SELECT id, sum(turn_tokens) OVER newer AS tokens, sum(bytes) OVER newer AS bytes FROM newest WINDOW newer AS (ORDER BY turn DESC)
    )"""
_ESTIMATE_BYTES = text(f"""
    {_NEWEST_CTES}, history AS (
        SELECT summed.bytes, job.attachments FROM summed JOIN job ON job.id = summed.id
        WHERE summed.tokens <= :max_tokens AND summed.bytes <= :max_bytes
    )
    SELECT coalesce((SELECT max(bytes) FROM history), 0) + coalesce((
        SELECT sum(octet_length(content) / 3 * 4) FROM artifact
        WHERE id = ANY(CAST(:attachments AS uuid[])) OR id IN (SELECT unnest(attachments) FROM history)
    ), 0)
""")


def estimate_bytes(session: Transaction, row: Any, *, max_bytes: int) -> int:
    """The approximate size of `read_history`'s result in bytes, including in base64 the attachments of its turns and of this turn."""
    params = {**_history_params(row, max_bytes), "max_tokens": row.history_tokens or 0, "attachments": list(row.attachments or ())}
    return int(session.execute(_ESTIMATE_BYTES, params).scalar_one())


_PROMPT = text("SELECT coalesce(system_prompt, :system_prompt) AS prompt FROM conversation WHERE id = :id")
_READ = text(f"""
    {_NEWEST_CTES}
    SELECT job.id, job.endpoint, job.request, job.response, job.attachments FROM summed JOIN job ON job.id = summed.id
    WHERE summed.tokens <= :max_tokens AND summed.bytes <= :max_bytes ORDER BY job.turn
""")


def read_history(session: Transaction, row: Any, *, max_bytes: int) -> History:
    """Reads the history of this claimed turn, within its reserved tokens.

    row: id, conversation_id, turn, since_turn, history_tokens. max_bytes: read limit, because images are few tokens, but large.
    """
    params = {"id": row.conversation_id, "system_prompt": settings().session_system_prompt}
    conversation = session.execute(_PROMPT, params).one_or_none()
    prompt = conversation.prompt if conversation is not None else ""
    max_tokens = (row.history_tokens or 0) - prompt_tokens(prompt)
    if row.since_turn is None or max_tokens <= 0:
        return History(prompt, [])
    return History(prompt, session.execute(_READ, {**_history_params(row, max_bytes), "max_tokens": max_tokens}).all())


def _history_params(row: Any, max_bytes: int) -> dict[str, Any]:
    return {
        "conversation_id": row.conversation_id, "since": row.since_turn, "turn": row.turn, "max_bytes": max_bytes, "max_turns": MAX_TURNS,
    }  # fmt: skip


def prompt_tokens(prompt: str) -> int:
    """The tokens of a system prompt, as stored with a conversation's own prompt; 0 for an empty one."""
    return token_estimate.estimate_text(prompt) + TOKENS_PER_MESSAGE if prompt else 0


# A turn that was too long without history says nothing about its history.
_HALVE_CONTEXT = text("""
    UPDATE conversation SET learned_tokens = (job.history_tokens + job.turn_tokens) / 2
    FROM job WHERE job.id = :id AND job.history_tokens > 0 AND conversation.id = job.conversation_id
""")


def halve_context(session: Transaction, job_id: UUID) -> None:
    """Halves the context of this turn's conversation for later turns: the upstream refused this turn's messages as too long."""
    session.execute(_HALVE_CONTEXT, {"id": job_id})

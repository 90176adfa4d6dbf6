"""What a turn remembers of those before it: decided when it is let into the line, read when it is claimed.

All turns before it have ended then, so the tokens that its history takes can be reserved exactly. A stretch of turns begins with the
conversation, or with a turn that came long after the last activity. Of its own stretch a turn remembers the system prompt and the
newest answered turns that fit, whole turns.
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

# However short they are.
MAX_TURNS = 500
# Of system prompts stored before their tokens were: rather too many.
_BYTES_PER_TOKEN = 3


@dataclass(frozen=True)
class HistoryWindow:
    """since_turn: the first turn of the stretch. tokens: what is reserved for the history, the system prompt included."""

    since_turn: int
    tokens: int


@dataclass(frozen=True)
class History:
    """What goes before a turn's own messages. turns: oldest first; rows: id, endpoint, request, response, attachments."""

    prompt: str
    turns: Sequence[Any]


def open_window(
    session: Transaction, *, conversation_id: int, turn: int, endpoint: str, lane_id: int, tokens: int, turn_tokens: int | None
) -> HistoryWindow:
    """What a new turn remembers, all before it having ended. tokens: its own, with the reply; turn_tokens: its question's."""
    wanted = {"conversation_id": conversation_id, "turn": turn, "endpoint": endpoint, "lane_id": lane_id, "tokens": tokens}
    row = session.execute(_BEGIN, {**wanted, "turn_tokens": turn_tokens, **_rules()}).one()
    return HistoryWindow(row.since_turn, int(row.history_tokens))


def fit_windows(session: Transaction, job_ids: Sequence[UUID]) -> None:
    """These turns, just let into the line, have reserved what they remember."""
    if job_ids:
        session.execute(_FIT, {"ids": list(job_ids), **_rules()})


def estimate_bytes(session: Transaction, row: Any, *, most_bytes: int) -> int:
    """About how many bytes `read` would find, with the files that go with them and with this turn, in base64."""
    wanted = {
        "conversation_id": row.conversation_id, "since": row.since_turn, "turn": row.turn, "room": row.history_tokens or 0,
        "most_bytes": most_bytes, "turns_most": MAX_TURNS, "attachments": list(row.attachments or ()),
    }  # fmt: skip
    return int(session.execute(_WEIGH, wanted).scalar_one())


def read_history(session: Transaction, row: Any, *, most_bytes: int) -> History:
    """What this claimed turn remembers, within what it reserved. row: id, conversation_id, turn, since_turn, history_tokens.

    most_bytes: upper bound on what is read; pictures weigh little and are large.
    """
    talk = session.execute(_PROMPT, {"id": row.conversation_id, "system_prompt": settings().session_system_prompt}).one_or_none()
    prompt = talk.prompt if talk is not None else ""
    room = (row.history_tokens or 0) - prompt_tokens(prompt)
    if row.since_turn is None or room <= 0:
        return History(prompt, [])
    wanted = {"conversation_id": row.conversation_id, "since": row.since_turn, "turn": row.turn, "room": room, "most_bytes": most_bytes}
    return History(prompt, session.execute(_READ, {**wanted, "turns_most": MAX_TURNS}).all())


def prompt_tokens(prompt: str) -> int:
    """What a system prompt takes, as it is stored with a conversation's own; nothing when there is none."""
    return token_estimate.estimate_text(prompt) + TOKENS_PER_MESSAGE if prompt else 0


def halve_context(session: Transaction, job_id: UUID) -> None:
    """The upstream found this turn's messages too long: the next ones of its conversation get half of what it had."""
    session.execute(_SHRINK, {"id": job_id})


def _rules() -> dict[str, Any]:
    known = settings()
    return {
        "context_tokens": known.session_context_tokens, "usual_prompt_tokens": prompt_tokens(known.session_system_prompt),
        "fresh_after_s": known.session_fresh_after_s, "default_tpm": known.default_tpm, "turns_most": MAX_TURNS,
    }  # fmt: skip


# Of the CTE `mine` (id, conversation_id, turn, endpoint, lane_id, tokens, turn_tokens, created_at): what each remembers. A history that
# fits the model but not the key's tokens per minute could never be sent: both are bounds.
_REMEMBERED = f"""
    bound AS MATERIALIZED (
        SELECT mine.*, coalesce(talk.fresh_after_s, :fresh_after_s) AS fresh_after_s,
               CASE WHEN talk.system_prompt IS NULL THEN CAST(:usual_prompt_tokens AS bigint) WHEN talk.system_prompt = '' THEN 0
                    ELSE coalesce(talk.system_prompt_tokens, octet_length(talk.system_prompt) / {_BYTES_PER_TOKEN} + {TOKENS_PER_MESSAGE})
               END AS prompt_tokens,
               least(
                   least(coalesce(talk.context_tokens, CAST(:context_tokens AS bigint)), talk.learned_tokens) - mine.turn_tokens,
                   (
                       SELECT max(least(coalesce(own.tpm, usual.tpm, nullif(:default_tpm, 0)), own.learned_tpm))
                       FROM lane JOIN credential ON credential.pool_id = lane.pool_id AND credential.parked_at IS NULL
                       LEFT JOIN meter AS own ON own.credential_id = credential.id AND own.model = lane.model
                       LEFT JOIN meter AS usual ON usual.credential_id = credential.id AND usual.model = '*'
                       WHERE lane.id = mine.lane_id
                   ) - CAST(mine.tokens AS bigint)
               ) AS room
        FROM mine JOIN conversation AS talk ON talk.id = mine.conversation_id
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
    ), remembered AS MATERIALIZED (
        SELECT id, since_turn, CASE WHEN endpoint <> '{CHAT}' THEN 0 ELSE prompt_tokens + coalesce((
            SELECT max(total) FROM (
                SELECT sum(turn_tokens) OVER (ORDER BY turn DESC) AS total FROM (
                    SELECT turn, turn_tokens FROM job
                    WHERE conversation_id = begun.conversation_id AND turn >= begun.since_turn AND turn < begun.turn
                    AND status = 'succeeded' AND turn_tokens IS NOT NULL ORDER BY turn DESC LIMIT :turns_most
                ) AS newest
            ) AS summed WHERE total <= begun.room - begun.prompt_tokens
        ), 0) END AS history_tokens
        FROM begun
    )"""
_BEGIN = text(f"""
    WITH mine AS (
        SELECT NULL::uuid AS id, CAST(:conversation_id AS bigint) AS conversation_id, CAST(:turn AS int) AS turn,
               CAST(:endpoint AS text) AS endpoint, CAST(:lane_id AS bigint) AS lane_id, CAST(:tokens AS bigint) AS tokens,
               CAST(:turn_tokens AS int) AS turn_tokens, clock_timestamp() AS created_at
    ), {_REMEMBERED}
    SELECT since_turn, history_tokens FROM remembered
""")
_FIT = text(f"""
    WITH mine AS (
        SELECT id, conversation_id, turn, endpoint, lane_id, tokens, turn_tokens, created_at FROM job WHERE id = ANY(:ids)
    ), {_REMEMBERED}
    UPDATE job SET since_turn = remembered.since_turn, history_tokens = remembered.history_tokens,
           tokens = least(2147483647, job.tokens + remembered.history_tokens)
    FROM remembered WHERE job.id = remembered.id
""")
_PROMPT = text("SELECT coalesce(system_prompt, :system_prompt) AS prompt FROM conversation WHERE id = :id")
_NEWEST = """
    WITH newest AS (
        SELECT id, turn, turn_tokens, octet_length(request) + coalesce(octet_length(response), 0) AS bytes FROM job
        WHERE conversation_id = :conversation_id AND turn >= :since AND turn < :turn AND status = 'succeeded' AND turn_tokens IS NOT NULL
        ORDER BY turn DESC LIMIT :turns_most
    ), summed AS (
        SELECT id, sum(turn_tokens) OVER newer AS tokens, sum(bytes) OVER newer AS bytes FROM newest WINDOW newer AS (ORDER BY turn DESC)
    )"""
_READ = text(f"""
    {_NEWEST}
    SELECT job.id, job.endpoint, job.request, job.response, job.attachments FROM summed JOIN job ON job.id = summed.id
    WHERE summed.tokens <= :room AND summed.bytes <= :most_bytes ORDER BY job.turn
""")
_WEIGH = text(f"""
    {_NEWEST}, remembered AS (
        SELECT summed.bytes, job.attachments FROM summed JOIN job ON job.id = summed.id
        WHERE summed.tokens <= :room AND summed.bytes <= :most_bytes
    )
    SELECT coalesce((SELECT max(bytes) FROM remembered), 0) + coalesce((
        SELECT sum(octet_length(content) / 3 * 4) FROM artifact
        WHERE id = ANY(CAST(:attachments AS uuid[])) OR id IN (SELECT unnest(attachments) FROM remembered)
    ), 0)
""")
# A turn that was too long all by itself says nothing about its history.
_SHRINK = text("""
    UPDATE conversation SET learned_tokens = (job.history_tokens + job.turn_tokens) / 2
    FROM job WHERE job.id = :id AND job.history_tokens > 0 AND conversation.id = job.conversation_id
""")

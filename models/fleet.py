"""The worker processes and how many jobs each can take at once, by their own reports."""

from __future__ import annotations

from sqlalchemy import text

from models.db import Session


def report(session: Session, name: str, *, slots: int) -> None:
    """This process is alive and can hold `slots` jobs at once; 0 while it drains."""
    session.execute(_REPORT, {"name": name, "slots": slots})


def sign_off(session: Session, name: str) -> None:
    """This process is gone, and said so."""
    session.execute(text("DELETE FROM worker WHERE name = :name"), {"name": name})


def forget(session: Session, *, unseen_s: float) -> None:
    """Processes that went without a word are forgotten."""
    session.execute(text("DELETE FROM worker WHERE seen_at < now() - make_interval(secs => :unseen_s)"), {"unseen_s": unseen_s})


_REPORT = text("""
    INSERT INTO worker (name, slots, seen_at) VALUES (:name, :slots, now())
    ON CONFLICT (name) DO UPDATE SET slots = excluded.slots, seen_at = excluded.seen_at
""")

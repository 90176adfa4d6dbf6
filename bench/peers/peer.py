"""Interface of a measured tool: start with these limits, accept these jobs, stop. The upstream's journal is the reference for results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

MODEL = "gpt-4o-mini"
PROMPT = "Say hello to {user}."


@dataclass(frozen=True)
class Terms:
    """The limits of the upstream key, as an operator would configure them. at_once: concurrent calls. None: no such limit."""

    at_once: int
    rpm: int | None = None
    tpm: int | None = None


@dataclass(frozen=True)
class Work:
    """Jobs that go round these many users in turn, named `prefix` and a number; each job's prompt names its user.

    open_calls: how many its owners keep open where every call holds a connection.
    """

    jobs: int
    users: int = 1
    prefix: str = "user"
    max_tokens: int = 100
    open_calls: int = 16

    def names(self) -> list[str]:
        """The user of each job, in order."""
        return [f"{self.prefix}{n % self.users}" for n in range(self.jobs)]


def user_of(text: str) -> str:
    """The user that a prompt names."""
    return text.rstrip(".").rpartition(" ")[2]


class Peer(ABC):
    """name, settings: as the report says them. upstream_key: with which its calls arrive at the upstream."""

    name: str
    settings: str
    upstream_key: str

    @property
    def title(self) -> str:
        """The name, with versions where it comes from elsewhere."""
        return self.name

    @abstractmethod
    def serve(self, terms: Terms) -> None:
        """Ready for work under these terms; earlier work is forgotten."""

    @abstractmethod
    def hand_in(self, work: Work) -> None:
        """All of it is on its way; returns before it is done."""

    @abstractmethod
    def wait_done(self, *, within_s: float) -> None:
        """All that was handed in since `serve` has its result. Raises TimeoutError."""

    @abstractmethod
    def ask(self) -> float:
        """One call made and answered: seconds until its answer is in the caller's hands."""

    @abstractmethod
    def pids(self) -> dict[str, int]:
        """The first process of each of its parts; the clients that make the load are not of them."""

    @abstractmethod
    def halt(self) -> None:
        """Nothing of it runs any more."""

    def rush(self, work: Work, *, within_s: float) -> None:
        """The work is handed in and done, with clients that cost as little as can be."""
        self.hand_in(work)
        self.wait_done(within_s=within_s)

    def given_up(self) -> int:
        """Jobs that have ended without an answer though nothing was wrong with them."""
        return 0

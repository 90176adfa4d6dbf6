"""`nowserving demo`: the whole stack on this machine, a few users with questions and one who wants a picture, and the line moving.

Then the same through an unmodified OpenAI SDK, word by word. Real servers, a real (small) model, the public HTTP API only. Exit
status 0 when every job was answered.
"""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletionMessageParam
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from deploy.local.service import PartFailed
from deploy.local.stack import CannotStart, Stack

CHAT, DRAWING = "smollm2-135m", "drawing-card"
QUESTIONS = {
    "ana": ("What is the capital of France?", "Name two primary colours.", "What do bees make?", "Say hello in Spanish."),
    "ben": ("What is 2 + 2?", "Which planet is called the red planet?"),
    "chen": ("What is the opposite of hot?", "Name an animal that can fly."),
}
TO_THE_SDK = "What is the capital of Italy?"
PICTURE = ("dora", "A tortoise waiting in line with a numbered ticket")
# Without it so small a model wanders off, in several languages.
MANNER = "Answer in one short sentence."
SHORT: dict[str, Any] = {"max_tokens": 48, "temperature": 0.0}
PATIENCE_S = 120
ENDED = {"succeeded", "failed", "cancelled", "expired"}
LOOKS = {"queued": "yellow", "running": "cyan", "succeeded": "green", "failed": "bold red", "expired": "red", "cancelled": "red"}


@dataclass
class Ticket:
    """One job, with the positions it was seen at."""

    user: str
    prompt: str
    job: dict[str, Any]
    seen: list[int] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.job["status"] in ENDED

    def look(self, client: Client) -> None:
        self.job = client.get(f"/jobs/{self.job['id']}")
        position = (self.job["queue"] or {}).get("position", 0)
        if position and (not self.seen or self.seen[-1] != position):
            self.seen.append(position)


class Client:
    """The public API as anybody would call it."""

    def __init__(self, base_url: str, key: str) -> None:
        self._base_url, self.key = base_url, key

    def submit(self, user: str, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", "/jobs", {"endpoint": endpoint, "body": body, "user": user})

    def get(self, path: str) -> dict[str, Any]:
        return self._call("GET", path)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            self._base_url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


def main() -> None:
    """Starts, asks, shows, stops. Exits non-zero when a job failed or the stack could not be started."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="nowserving-demo-") as folder:
        stack = Stack(Path(folder), local_model=True, env={"NOWSERVING_PORT": "0", "NOWSERVING_FLOWER_PORT": "0"})
        try:
            with console.status("Starting PostgreSQL, Valkey, a small language model, the API, the pacer, a worker and Flower …"):
                stack.start()
            is_fine = run(console, stack)
        except (CannotStart, PartFailed) as error:
            console.print(f"[red]{error}")
            is_fine = False
        finally:
            stack.stop()
    console.print("Everything that was started has stopped.")
    sys.exit(0 if is_fine else 1)


def run(console: Console, stack: Stack) -> bool:
    """Whether every job was answered within PATIENCE_S."""
    places = stack.addresses
    console.print(f"API {places.api} · docs {places.docs} · Flower {places.flower} ({places.flower_login})")
    client = Client(places.api, "sk-demo-" + secrets.token_hex(8))
    tickets = take_numbers(client)
    deadline = time.monotonic() + PATIENCE_S
    with Live(table(tickets), console=console, refresh_per_second=10) as live:
        while not all(ticket.is_over for ticket in tickets) and time.monotonic() < deadline:
            for ticket in tickets:
                if not ticket.is_over:
                    ticket.look(client)
            live.update(table(tickets))
            time.sleep(0.1)
    for ticket in tickets:
        console.print(
            Panel(answer(ticket), title=f"{ticket.user}: {ticket.prompt}", title_align="left", border_style=LOOKS[ticket.job["status"]])
        )
    good = [ticket for ticket in tickets if ticket.job["status"] == "succeeded"]
    console.print(f"{len(good)} of {len(tickets)} jobs answered.")
    return len(good) == len(tickets) and stream(console, openai.OpenAI(base_url=places.api, api_key=client.key, max_retries=0))


def stream(console: Console, sdk: openai.OpenAI) -> bool:
    """Whether a streamed answer came whole, asked for as any program asks OpenAI; its text is shown as it comes."""
    console.print(f"The same through an unmodified OpenAI SDK (base_url={sdk.base_url}), streamed:")
    console.print(f"[dim]{TO_THE_SDK}[/dim] ", end="")
    pieces = 0
    try:
        with sdk.chat.completions.create(model=CHAT, messages=messages(TO_THE_SDK), stream=True, **SHORT) as chunks:
            for chunk in chunks:
                said = chunk.choices[0].delta.content if chunk.choices else None
                console.out(said or "", end="", highlight=False)
                pieces += bool(said)
    except openai.OpenAIError as error:
        console.print(f"[red]{error}")
        return False
    console.print(f"\n[dim]in {pieces} pieces[/dim]")
    return pieces > 0


def take_numbers(client: Client) -> list[Ticket]:
    """All the jobs, submitted before any of them is awaited."""
    tickets = []
    for user, prompts in QUESTIONS.items():
        for prompt in prompts:
            body = {"model": CHAT, "messages": messages(prompt), **SHORT}
            tickets.append(Ticket(user, prompt, client.submit(user, "/v1/chat/completions", body)))
    user, prompt = PICTURE
    tickets.append(
        Ticket(user, prompt, client.submit(user, "/v1/images/generations", {"model": DRAWING, "prompt": prompt, "size": "512x512"}))
    )
    return tickets


def messages(prompt: str) -> list[ChatCompletionMessageParam]:
    """The question, with the manner of answering."""
    return [{"role": "system", "content": MANNER}, {"role": "user", "content": prompt}]


def table(tickets: list[Ticket]) -> Table:
    """The tickets as they stand, one row each."""
    made = Table(title="Now serving", title_justify="left", expand=False)
    for name in ("user", "asks", "ticket", "status", "No.", "was", "about"):
        made.add_column(name, no_wrap=True)
    for ticket in tickets:
        queue = ticket.job["queue"] or {}
        eta_s, position = queue.get("eta_s"), queue.get("position") or 0
        status = ticket.job["status"]
        made.add_row(
            ticket.user,
            ticket.prompt[:36],
            ticket.job["id"][:14] + "…",
            f"[{LOOKS[status]}]{status}",
            str(position) if position else "",
            " ".join(map(str, ticket.seen)),
            f"{eta_s:.0f} s" if eta_s is not None and position else "",
        )
    return made


def answer(ticket: Ticket) -> str:
    """What the user gets to read: the reply, the picture's link, or the error."""
    if ticket.job["status"] != "succeeded":
        return str((ticket.job["error"] or {}).get("message", f"still {ticket.job['status']}"))
    if ticket.job["artifacts"]:
        picture = ticket.job["artifacts"][0]
        return f"{picture['content_type']}, {picture['bytes']:,} bytes, at {picture['url'].split('&')[0]}&signature=…"
    return str(ticket.job["result"]["choices"][0]["message"]["content"]).strip()


if __name__ == "__main__":
    main()

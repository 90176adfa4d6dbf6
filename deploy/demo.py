"""`nowserving demo`: runs the whole stack on this machine, and shows the queue while it serves chats of several users and an image.

Then it streams an answer through an unmodified OpenAI SDK. It uses real servers, a real (small) model and the public HTTP API
only. Exit status 0 if every job was answered.
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

from deploy.local.service import ServiceFailed
from deploy.local.stack import CannotStart, Stack

CHAT, DRAWING = "smollm2-135m", "drawing-card"
QUESTIONS = {
    "ana": ("What is the capital of France?", "Name two primary colours.", "What do bees make?", "Say hello in Spanish."),
    "ben": ("What is 2 + 2?", "Which planet is called the red planet?"),
    "chen": ("What is the opposite of hot?", "Name an animal that can fly."),
}
SDK_QUESTION = "What is the capital of Italy?"
IMAGE = ("dora", "A tortoise waiting in line with a numbered ticket")
# Without this instruction the small model rambles, in several languages.
INSTRUCTION = "Answer in one short sentence."
PARAMS: dict[str, Any] = {"max_tokens": 48, "temperature": 0.0}
TIMEOUT_S = 120
ENDED = {"succeeded", "failed", "cancelled", "expired"}
COLOURS = {"queued": "yellow", "running": "cyan", "succeeded": "green", "failed": "bold red", "expired": "red", "cancelled": "red"}


@dataclass
class Ticket:
    """One job and its past queue positions."""

    user: str
    prompt: str
    job: dict[str, Any]
    positions: list[int] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.job["status"] in ENDED

    def refresh(self, client: Client) -> None:
        """Reads the job again."""
        self.job = client.get(f"/jobs/{self.job['id']}")
        position = (self.job["queue"] or {}).get("position", 0)
        if position and (not self.positions or self.positions[-1] != position):
            self.positions.append(position)


class Client:
    """Client of the public API."""

    def __init__(self, base_url: str, key: str) -> None:
        self._base_url, self.key = base_url, key

    def submit(self, user: str, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
        """Submits a job."""
        return self._call("POST", "/jobs", {"endpoint": endpoint, "body": body, "user": user})

    def get(self, path: str) -> dict[str, Any]:
        """Reads a resource."""
        return self._call("GET", path)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base_url + path, method=method, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            value: dict[str, Any] = json.load(response)
            return value


def main() -> None:
    """Runs the demo. Exits with 1 when a job failed or the stack could not be started."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="nowserving-demo-") as folder:
        stack = Stack(Path(folder), local_model=True, env={"NOWSERVING_PORT": "0", "NOWSERVING_FLOWER_PORT": "0"})
        try:
            with console.status("Starting PostgreSQL, Valkey, a small language model, the API, the pacer, a worker and Flower …"):
                stack.start()
            is_fine = run(console, stack)
        except (CannotStart, ServiceFailed) as error:
            console.print(f"[red]{error}")
            is_fine = False
        finally:
            stack.stop()
    console.print("Everything that was started has stopped.")
    sys.exit(0 if is_fine else 1)


def run(console: Console, stack: Stack) -> bool:
    """Runs all jobs; returns whether every job was answered within TIMEOUT_S."""
    urls = stack.addresses
    console.print(f"API {urls.api} · docs {urls.docs} · Flower {urls.flower} ({urls.flower_login})")
    client = Client(urls.api, "sk-demo-" + secrets.token_hex(8))
    tickets = submit_all(client)
    deadline = time.monotonic() + TIMEOUT_S
    with Live(table(tickets), console=console, refresh_per_second=10) as live:
        while not all(ticket.is_over for ticket in tickets) and time.monotonic() < deadline:
            for ticket in tickets:
                if not ticket.is_over:
                    ticket.refresh(client)
            live.update(table(tickets))
            time.sleep(0.1)
    for ticket in tickets:
        console.print(
            Panel(answer(ticket), title=f"{ticket.user}: {ticket.prompt}", title_align="left", border_style=COLOURS[ticket.job["status"]])
        )
    good = [ticket for ticket in tickets if ticket.job["status"] == "succeeded"]
    console.print(f"{len(good)} of {len(tickets)} jobs answered.")
    return len(good) == len(tickets) and stream(console, openai.OpenAI(base_url=urls.api, api_key=client.key, max_retries=0))


def stream(console: Console, sdk: openai.OpenAI) -> bool:
    """Streams an answer through the SDK and prints it; returns whether it was complete."""
    console.print(f"The same through an unmodified OpenAI SDK (base_url={sdk.base_url}), streamed:")
    console.print(f"[dim]{SDK_QUESTION}[/dim] ", end="")
    pieces = 0
    try:
        with sdk.chat.completions.create(model=CHAT, messages=messages(SDK_QUESTION), stream=True, **PARAMS) as chunks:
            for chunk in chunks:
                text = chunk.choices[0].delta.content if chunk.choices else None
                console.out(text or "", end="", highlight=False)
                pieces += bool(text)
    except openai.OpenAIError as error:
        console.print(f"[red]{error}")
        return False
    console.print(f"\n[dim]in {pieces} pieces[/dim]")
    return pieces > 0


def submit_all(client: Client) -> list[Ticket]:
    """Submits all jobs before waiting for any of them."""
    tickets = []
    for user, prompts in QUESTIONS.items():
        for prompt in prompts:
            body = {"model": CHAT, "messages": messages(prompt), **PARAMS}
            tickets.append(Ticket(user, prompt, client.submit(user, "/v1/chat/completions", body)))
    user, prompt = IMAGE
    tickets.append(
        Ticket(user, prompt, client.submit(user, "/v1/images/generations", {"model": DRAWING, "prompt": prompt, "size": "512x512"}))
    )
    return tickets


def messages(prompt: str) -> list[ChatCompletionMessageParam]:
    """Returns the chat messages of a question."""
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}]


def table(tickets: list[Ticket]) -> Table:
    """Renders the tickets, one row each."""
    output = Table(title="Now serving", title_justify="left", expand=False)
    for name in ("user", "asks", "ticket", "status", "No.", "was", "about"):
        output.add_column(name, no_wrap=True)
    for ticket in tickets:
        queue = ticket.job["queue"] or {}
        eta_s, position = queue.get("eta_s"), queue.get("position") or 0
        status = ticket.job["status"]
        output.add_row(
            ticket.user,
            ticket.prompt[:36],
            ticket.job["id"][:14] + "…",
            f"[{COLOURS[status]}]{status}",
            str(position) if position else "",
            " ".join(map(str, ticket.positions)),
            f"{eta_s:.0f} s" if eta_s is not None and position else "",
        )
    return output


def answer(ticket: Ticket) -> str:
    """Returns the reply, the link of the image, or the error."""
    if ticket.job["status"] != "succeeded":
        return str((ticket.job["error"] or {}).get("message", f"still {ticket.job['status']}"))
    if ticket.job["artifacts"]:
        image = ticket.job["artifacts"][0]
        return f"{image['content_type']}, {image['bytes']:,} bytes, at {image['url'].split('&')[0]}&signature=…"
    return str(ticket.job["result"]["choices"][0]["message"]["content"]).strip()


if __name__ == "__main__":
    main()

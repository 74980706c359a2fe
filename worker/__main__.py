"""The command line: python -m worker serve | check | chat.

Each command imports what it needs when it runs: `serve` becomes gunicorn, and whoever asks for help does not wait
for a machine learning library.
"""

import os
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def cli() -> None:
    """Endstop: a streaming LLM worker whose streams always end."""


@cli.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on; else PORT, else 8000.")
@click.option("--model", help="Model folder or hub id; else ENDSTOP_MODEL, else the small model that comes along.")
def serve(port: int | None, model: str | None) -> None:
    """Serve a model. Everything else is set by ENDSTOP_ variables."""
    if port is not None:
        os.environ["PORT"] = str(port)
    if model is not None:
        # A folder is named from where the user is, and gunicorn runs somewhere else.
        os.environ["ENDSTOP_MODEL"] = os.path.abspath(model) if os.path.isdir(model) else model
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"])


@cli.command()
@click.argument("url", required=False)
@click.option("--worker-class", type=click.Choice(["gevent", "gthread"]), help="Of the server that is started.")
@click.option("--prompt", default="Once upon a time", help="What both streams are asked.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, help="Tokens of each stream.")
@click.option("--limit-s", type=click.FloatRange(min=0, min_open=True), default=30.0, help="For both streams together.")
@click.option("--api-key", help="Sent as a bearer token.")
def check(
    url: str | None, worker_class: str | None, prompt: str, max_tokens: int, limit_s: float, api_key: str | None
) -> None:
    """Hold the server at URL against the stream contract; without a URL, one that is started for it."""
    from worker.check import run_check

    if url is not None and worker_class is not None:
        raise click.UsageError("--worker-class is for a server that is started here; leave out the URL")
    is_passed = run_check(
        url, worker_class=worker_class, prompt=prompt, max_tokens=max_tokens, limit_s=limit_s, api_key=api_key
    )
    sys.exit(0 if is_passed else 1)


@cli.command()
@click.argument("url", required=False)
@click.option("--system", help="What the model is told before the conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of an answer; else the server decides.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is the likeliest answer; else the server decides.")
@click.option("--api-key", help="Sent as a bearer token.")
def chat(
    url: str | None, system: str | None, max_tokens: int | None, temperature: float | None, api_key: str | None
) -> None:
    """Talk to the model at URL; without a URL, to a server that is started for it."""
    from worker.chat import run_chat

    is_fine = run_chat(url, system=system, max_tokens=max_tokens, temperature=temperature, api_key=api_key)
    sys.exit(0 if is_fine else 1)


if __name__ == "__main__":
    cli(prog_name="python -m worker")

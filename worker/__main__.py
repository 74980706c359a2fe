"""The command line: python -m worker serve | chat | check | bench | models.

Each command imports what it needs when it runs: `serve` becomes gunicorn, and whoever asks for help does not wait
for a machine learning library.
"""

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import click

from worker import __version__
from worker.serve import ServeCommand, given_options
from worker.serve import serve as become_server


class InOrder(click.Group):
    """A group that lists its commands in the order in which a person meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, as they were defined."""
        return list(self.commands)


SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


def _say_versions(context: click.Context, option: click.Parameter, is_asked: bool) -> None:
    """What a report of a fault needs. Read from the packages' own notes: nothing is imported."""
    if not is_asked or context.resilient_parsing:
        return
    lines = [f"endstop {__version__}", f"python {platform.python_version()} on {platform.platform()}"]
    for name in ("torch", "transformers", "flask", "gunicorn", "gevent"):
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} is not installed")
    click.echo("\n".join(lines))
    context.exit()


@click.group(cls=InOrder, context_settings=SETTINGS)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_versions,
    help="Print the versions of Endstop and of what it runs on, and stop.",
)
def cli() -> None:
    """Endstop: a streaming LLM worker whose streams always end.

    \b
      python -m worker serve              the small model that comes along
      python -m worker serve --model ID   one of yours: a folder or hub id
      python -m worker chat URL           talk to it: http://127.0.0.1:8000
      python -m worker COMMAND --help     what a command can do
    """


@cli.command(cls=ServeCommand)
@click.option("--print-config", is_flag=True, help="Print every setting and where it was set, and stop.")
def serve(print_config: bool, **values: str | None) -> None:
    """Serve a model over HTTP.

    In its own job API, in OpenAI's and in Anthropic's; with a chat page at / and metrics at /metrics.

    Every option is also an environment variable (--max-slots is ENDSTOP_MAX_SLOTS, --port is PORT) and a line in the
    TOML file that --config names (max_slots = 16). An option wins over a variable, and that over the file.

    \b
      python -m worker serve --model Qwen/Qwen2.5-0.5B-Instruct --max-slots 8
      python -m worker serve --config endstop.toml --print-config
    """
    become_server(given_options(values), is_printing=print_config)


@cli.command()
@click.argument("url", required=False)
@click.option("--model", help="Of the server that is started here: a model folder or hub id.")
@click.option("--system", help="What the model is told before the conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of an answer; else the server decides.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is the likeliest answer; else the server decides.")
@click.option("--api-key", help="Sent as a bearer token.")
def chat(
    url: str | None,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    api_key: str | None,
) -> None:
    """Talk to a model in the terminal.

    To that of the server at URL; without a URL, to one that is started for it. Where no terminal asks, as in a pipe, it
    exits with 1 when an answer failed.
    """
    from worker.chat import run_chat

    if model is not None:
        if url is not None:
            raise click.UsageError("--model is for a server that is started here; leave out the URL")
        # The server runs in another folder.
        os.environ["ENDSTOP_MODEL"] = os.path.abspath(model) if os.path.isdir(model) else model
    is_fine = run_chat(url, system=system, max_tokens=max_tokens, temperature=temperature, api_key=api_key)
    sys.exit(0 if is_fine else 1)


@cli.command()
@click.argument("url", required=False)
@click.option("--worker-class", type=click.Choice(["gevent", "gthread"]), help="Of the server that is started.")
@click.option(
    "--api", type=click.Choice(["auto", "native", "openai"]), default="auto", help="The wire format to check."
)
@click.option("--model", help="Named in OpenAI requests; else the first one that the server lists.")
@click.option("--api-key", help="Sent as a bearer token.")
@click.option("--prompt", default="Once upon a time", help="What the plain stream of each format is asked.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, help="Tokens of each plain stream.")
@click.option("--context-tokens", type=click.IntRange(min=1), help="What the model has room for, prompt and answer.")
@click.option(
    "--limit-s",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    help="For all that one check asks, the plain stream included; what has no answer by then fails.",
)
@click.option(
    "--watch-s",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    help="How long a crowd of streams is watched, beside the limit; more than 12 shows whether keep-alives come.",
)
@click.option("--crowd", type=click.IntRange(min=2), default=64, help="How many streams the crowd has.")
@click.option("--only", help="Names of checks, separated by commas.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@click.option("--list", "is_list", is_flag=True, help="Print the checks and stop.")
def check(
    url: str | None,
    worker_class: str | None,
    api: str,
    model: str | None,
    api_key: str | None,
    prompt: str,
    max_tokens: int,
    context_tokens: int | None,
    limit_s: float,
    watch_s: float,
    crowd: int,
    only: str | None,
    as_json: bool,
    is_list: bool,
) -> None:
    """Hold a server against the stream contract.

    The one at URL; without a URL, one that is started for it. The server may be ours or another's, in the native or
    in OpenAI's wire format. Exits with 0 when every check has passed or was skipped with a reason, with 1 when one
    has failed, with 2 when the command is wrong.
    """
    from worker.check import Options, run_check, show_list
    from worker.checks.asking import Limits
    from worker.checks.table import CHECKS
    from worker.config import did_you_mean

    if is_list:
        show_list()
        return
    if url is not None and worker_class is not None:
        raise click.UsageError("--worker-class is for a server that is started here; leave out the URL")
    if url is not None and "://" in url and not url.startswith(("http://", "https://")):
        raise click.UsageError(f"a URL starts with http:// or https://, not {url!r}")
    names = [name.strip() for name in only.split(",")] if only else []
    known = {each.name for each in CHECKS}
    if unknown := [f"there is no check {name}{did_you_mean(name, known)}" for name in names if name not in known]:
        raise click.UsageError("\n".join([*unknown, "--list shows them"]))
    options = Options(
        prompt=prompt,
        max_tokens=max_tokens,
        api=api,
        model=model,
        api_key=api_key,
        only=names,
        context_tokens=context_tokens,
        limits=Limits(check_s=limit_s, watch_s=watch_s, crowd=crowd),
    )
    sys.exit(0 if run_check(url, options, worker_class=worker_class, as_json=as_json) else 1)


@cli.command()
@click.argument("url", required=False)
@click.option("--streams", type=click.IntRange(1, 4096), default=4, help="Requests that are open at any time.")
@click.option("--requests", type=click.IntRange(min=1), help="In all.  [default: four for each stream]")
@click.option("--prompt-words", type=click.IntRange(min=1), default=64, help="Of each prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, help="Of each answer.")
@click.option("--fixed/--natural", default=True, help="Answers of one length (ignore_eos), or as the model ends them.")
@click.option("--limit-s", type=click.FloatRange(min=0, min_open=True), default=600.0, help="For all of them.")
@click.option("--model", help="Named in the requests; else the first one that the server lists.")
@click.option("--api-key", help="Sent as a bearer token.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def bench(
    url: str | None,
    streams: int,
    requests: int | None,
    prompt_words: int,
    max_tokens: int,
    fixed: bool,
    limit_s: float,
    model: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Measure how fast a server streams.

    The one at URL, if it speaks OpenAI's chat format; without a URL, one that is started for it. Tokens per second,
    time to the first token and per token, of so many streams at once. What else runs on the machine is in the
    numbers: repeat it, and compare what was measured together. Exits with 1 when a request failed.

    \b
      python -m worker bench --streams 16
      python -m worker bench http://127.0.0.1:8080 --streams 16 --json
    """
    from worker.bench import CannotBench, Options, run_bench
    from worker.spawn import SpawnFailed

    options = Options(
        streams=streams,
        requests=requests or 4 * streams,
        prompt_words=prompt_words,
        max_tokens=max_tokens,
        is_fixed=fixed,
        limit_s=limit_s,
        model=model,
        api_key=api_key,
    )
    try:
        sys.exit(0 if run_bench(url, options, as_json=as_json) else 1)
    except (CannotBench, SpawnFailed) as error:
        raise click.ClickException(str(error)) from error


@cli.group()
def models() -> None:
    """List, download and remove models of this machine.

    They lie in the cache of the hub's client (HF_HOME moves it), which other programs share.
    """


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def list_models(as_json: bool) -> None:
    """Show the models that can be served without a download."""
    from rich.console import Console

    from worker.models import local_models, show_models

    if as_json:
        click.echo(json.dumps([model.as_json() for model in local_models()], indent=2))
    else:
        show_models(Console())


@models.command("download")
@click.argument("name")
def download(name: str) -> None:
    """Bring a model from the hub.

    NAME is OWNER/NAME there; `serve` then starts without a download.
    What is there already is not brought again. A model that its owner shares by agreement needs the agreement on the
    hub and a token in HF_TOKEN.
    """
    from rich.console import Console

    from worker.models import CannotDo, download_model

    try:
        download_model(name, Console())
    except CannotDo as error:
        raise click.ClickException(str(error)) from error


@models.command("remove")
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(names: tuple[str, ...], yes: bool) -> None:
    """Delete models from this machine. Asks first."""
    from rich.filesize import decimal

    from worker.models import CannotDo, find_model, remove_model

    try:
        found = [find_model(name) for name in dict.fromkeys(names)]
        for model in found:
            click.echo(f"{model.name}: {decimal(model.num_bytes)} in {model.folder}")
        if not yes:
            click.confirm("Delete?", abort=True)
        for model in found:
            remove_model(model)
            click.echo(f"{model.name} is deleted")
    except CannotDo as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    cli(prog_name="python -m worker")

"""From measurements to medians, ratios, a table in Markdown, a plot, and a word on whether to trust them."""

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Between the fastest and the slowest round of one server. Above it, medians of a few rounds mean little.
MAX_SPREAD = 1.3
# Seconds of work by others for each second of a measurement.
MAX_FOREIGN = 0.1
OURS = "endstop-gevent"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One server on one model under one load, once."""

    model: str
    server: str
    num_streams: int
    round: int
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    cpu_s: float
    peak_mib: float
    foreign: float  # cores that neither the server nor the client had


Key = tuple[str, int, str]  # model, streams, server


def percentile(values: list[float], share: float) -> float:
    """The smallest value that is not below so large a share of all of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def medians(measurements: list[Measurement]) -> dict[Key, dict[str, float]]:
    """Of each server under each load, over the rounds; with the spread of its rates."""
    rounds: dict[Key, list[Measurement]] = defaultdict(list)
    for one in measurements:
        rounds[one.model, one.num_streams, one.server].append(one)
    found = {}
    for key, rows in sorted(rounds.items(), key=lambda item: (item[0][0], item[0][1])):
        numbers = [{k: v for k, v in asdict(row).items() if isinstance(v, float)} for row in rows]
        found[key] = {name: round(statistics.median(row[name] for row in numbers), 2) for name in numbers[0]}
        rates = [row.tokens_per_s for row in rows]
        found[key]["spread"] = round(max(rates) / min(rates), 2)
    return found


def doubts(table: dict[Key, dict[str, float]]) -> list[str]:
    """Why not to trust some of it. Empty if there is no reason."""
    found = []
    for (model, num_streams, server), row in table.items():
        where = f"{server} on {model} at {num_streams}"
        if row["spread"] > MAX_SPREAD:
            found.append(f"{where}: its rounds differ by a factor of {row['spread']:g}")
        if row["foreign"] > MAX_FOREIGN:
            found.append(f"{where}: others took {row['foreign']:g} cores meanwhile")
    return found


_COLUMNS: dict[str, Callable[[dict[str, float]], str]] = {
    "tokens/s": lambda row: f"{row['tokens_per_s']:.1f}",
    "first token p50, p95 (ms)": lambda row: f"{row['ttft_p50_ms']:.0f}, {row['ttft_p95_ms']:.0f}",
    "gap p50, p99 (ms)": lambda row: f"{row['gap_p50_ms']:.1f}, {row['gap_p99_ms']:.1f}",
    "CPU s": lambda row: f"{row['cpu_s']:.1f}",
    "peak MiB": lambda row: f"{row['peak_mib']:.0f}",
    "spread": lambda row: f"{row['spread']:.2f}",
}


def markdown(table: dict[Key, dict[str, float]]) -> str:
    """One table for each model. The ratio is ours to theirs, of the medians of tokens per second."""
    lines = []
    for model in dict.fromkeys(key[0] for key in table):
        heads = ("streams", "server", *_COLUMNS, f"{OURS} is")
        lines += [f"### {model}", "", f"| {' | '.join(heads)} |", "|---:|---|" + "---:|" * (len(heads) - 2)]
        for (_, num_streams, server), row in ((k, r) for k, r in table.items() if k[0] == model):
            ours = table.get((model, num_streams, OURS))
            ratio = f"{ours['tokens_per_s'] / row['tokens_per_s']:.2f}x" if ours and server != OURS else ""
            cells = (str(num_streams), server, *(show(row) for show in _COLUMNS.values()), ratio)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def plot(table: dict[Key, dict[str, float]], path: Path) -> None:
    """Tokens per second over streams, a panel for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(key[0] for key in table))
    figure, panels = pyplot.subplots(1, len(models), figsize=(5 * len(models), 4), squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        for server in dict.fromkeys(key[2] for key in table if key[0] == model):
            points = [(key[1], row["tokens_per_s"]) for key, row in table.items() if key[0::2] == (model, server)]
            panel.plot(*zip(*points, strict=True), marker="o", label=server)
        panel.set(title=model, xlabel="streams at once", ylabel="tokens/s", xscale="log", yscale="log")
        panel.set_xticks([key[1] for key in table], [str(key[1]) for key in table], minor=False)
        panel.grid(visible=True, alpha=0.3)
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def as_json(table: dict[Key, dict[str, float]]) -> list[dict[str, Any]]:
    """For the last line."""
    return [{"model": m, "streams": n, "server": s, **row} for (m, n, s), row in table.items()]

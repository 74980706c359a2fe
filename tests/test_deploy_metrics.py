"""The table of docs/metrics.md, the dashboard and the rules know the metrics that there are, and no others."""

import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.apps import app_in_process
from tests.support.engines import wait_until
from tests.support.pages import table
from worker import errors
from worker.observe.metrics import STATES
from worker.observe.watchdog import Phase
from worker.settings import ROOT

DASHBOARD = json.loads((ROOT / "deploy" / "grafana.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())

# Of PromQL; what is here is no name of a metric.
WORDS = {"sum", "max", "avg", "rate", "increase", "changes", "histogram_quantile", "by", "on", "and", "ignoring"}
WORDS |= {"group_left", "label_values"}
# What Prometheus adds, or a series of its own.
TARGET_LABELS = {"job", "instance", "le"}
VALUES = {"state": set(STATES), "outcome": {"end", "error", "cancelled"}, "what": {"slots", "streams"}}
VALUES |= {"phase": {phase.name.lower() for phase in Phase}, "status": {"500"}, "job": {"endstop"}}
VALUES["code"] = {one.code for one in vars(errors).values() if isinstance(one, type) and hasattr(one, "code")}


@pytest.fixture(scope="module")
def families() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of every metric that a server shows which has met all that it counts."""
    with app_in_process(max_slots=1) as app:
        app.extensions["runner"].open()
        client = app.test_client()
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
        assert client.get("/nope").status_code == 404
        metrics = app.extensions["endstop"].metrics
        wait_until(lambda: b"endstop_outcomes_total{" in metrics.exposition())
        text = client.get("/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + "_total" * (family.type == "counter")
        labels = {label for sample in family.samples for label in sample.labels}
        found[name] = family.type, labels - {"le"}
    return found


@pytest.fixture(scope="module")
def series(families: dict[str, tuple[str, set[str]]]) -> dict[str, set[str]]:
    """The labels of every name that can be asked for."""
    found: dict[str, set[str]] = {}
    for name, (kind, labels) in families.items():
        if kind == "histogram":
            found |= {f"{name}_sum": labels, f"{name}_count": labels, f"{name}_bucket": labels | {"le"}}
        else:
            found[name] = labels
    return found


def test_the_page_has_every_metric_its_type_and_its_labels(families: dict[str, tuple[str, set[str]]]) -> None:
    documented = {}
    for name, (kind, labels, about) in table("metrics.md", "name").items():
        assert about, name
        common = set() if name.startswith("process_") else {"model_name"}
        documented[name] = kind, set(re.findall(r"`(\w+)`", labels)) | common
    assert documented == families


def problems(series: dict[str, set[str]], expression: str) -> list[str]:
    """What an expression asks for that there is not."""
    found = []
    bare = re.sub(r"\$\w+", "", expression)
    for name, selector in re.findall(r"([a-zA-Z_][\w:]*)\s*\{([^}]*)\}", bare):
        for label, value in re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', selector):
            if label not in series.get(name, set()) | TARGET_LABELS:
                found.append(f"{name} has no label {label}")
            values = [one for one in value.split("|") if one]
            found += [f"{label} is never {one}" for one in values if label in VALUES and one not in VALUES[label]]
    known = set().union(*series.values()) | TARGET_LABELS
    bare = re.sub(r'\{[^}]*\}|\[[^\]]*\]|"[^"]*"', " ", bare)
    for labels in re.findall(r"\b(?:by|on|ignoring)\s*\(([^)]*)\)", bare):
        found += [f"no label {one.strip()}" for one in labels.split(",") if one.strip() not in known]
    bare = re.sub(r"\b(?:by|on|ignoring)\s*\([^)]*\)", " ", bare)
    names = set(re.findall(r"(?<![\w.])[a-zA-Z_][\w:]*", bare)) - WORDS
    return found + [f"no metric {one}" for one in names - set(series) - {"up"}]


@pytest.mark.parametrize(
    "expression",
    [
        "vllm:num_requests_walking",
        "rate(endstop_step_seconds[5m])",
        'endstop_state{colour="red"}',
        'endstop_state{state="WELL"}',
        "sum by (colour) (endstop_jobs)",
        'rate(endstop_outcomes_total{code="TIRED"}[5m])',
    ],
)
def test_what_there_is_not_is_found(series: dict[str, set[str]], expression: str) -> None:
    assert problems(series, expression)


def test_a_code_of_every_kind_is_known(series: dict[str, set[str]]) -> None:
    assert {"SLOW_CONSUMER", "OVERLOADED"} <= VALUES["code"]


@pytest.mark.parametrize("rule", RULES["groups"][0]["rules"], ids=lambda rule: str(rule["alert"]))
def test_rules_ask_for_what_there_is(series: dict[str, set[str]], rule: dict[str, Any]) -> None:
    assert problems(series, rule["expr"]) == []
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["action"]
    kept = re.findall(r"by \(([^)]*)\)", rule["expr"])
    if kept and rule["expr"].startswith(("sum", "max")):
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert used <= {label.strip() for label in kept[0].split(",")}, "the summary names a label that is summed away"


PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_panels_ask_for_what_there_is(series: dict[str, set[str]], panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    for target in panel["targets"]:
        assert problems(series, target["expr"]) == []
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_variables_of_the_dashboard_are_those_that_its_panels_use(series: dict[str, set[str]]) -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval"} == set(variables)
    for one in variables.values():
        if one["type"] == "query":
            assert problems(series, one["definition"].rpartition(",")[0].removeprefix("label_values(")) == []


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_metric_but_the_process_has_a_place_on_the_dashboard(families: dict[str, tuple[str, set[str]]]) -> None:
    shown = json.dumps(DASHBOARD)
    unseen = {name for name in families if name not in shown and not name.startswith("process_")}
    assert unseen <= {
        "vllm:request_success_total",  # endstop_outcomes_total says more
        "vllm:request_prompt_tokens",
        "vllm:request_generation_tokens",
        "endstop_grammars_total",
        "endstop_phase_longest_seconds",
        "endstop_uptime_seconds",
    }

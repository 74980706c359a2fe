"""compose.yaml with what it mounts: Prometheus' and Grafana's files, the secrets, and the times."""

import json
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.deploy.timing import assert_waits_long_enough
from tests.support.proxies import replaced
from tests.support.servers import free_port, running_server
from worker.keys import ApiKeys
from worker.settings import ROOT, Settings, variable_name

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PROMETHEUS: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())


def mounts(service: str) -> dict[str, str]:
    """What lies where in a container: files of the repository, or names of volumes."""
    found = (volume.split(":") for volume in SERVICES[service]["volumes"])
    return {target: source for source, target, *_ in found}


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_mounted_is_there(service: str) -> None:
    for source in mounts(service).values():
        assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"], source
    for secret in SERVICES[service].get("secrets", []):
        assert secret in COMPOSE["secrets"]


def test_secrets_lie_where_git_does_not_look() -> None:
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("./secrets/")


def test_the_docs_make_keys_that_fit_together(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    text = (ROOT / "docs" / "deploy.md").read_text()
    (block,) = re.findall(r"^    mkdir -m 700 deploy/secrets\n(?:    .*\n)+", text, re.MULTILINE)
    (tmp_path / "deploy").mkdir()
    subprocess.run(["bash", "-euc", f"umask 077\n{block}"], cwd=tmp_path, check=True)
    secrets = {name: tmp_path / "deploy" / one["file"] for name, one in COMPOSE["secrets"].items()}
    assert all(secret.stat().st_mode & 0o777 == 0o644 for secret in secrets.values())
    keys = ApiKeys.parse(secrets["api_keys"].read_text())
    assert keys.names == ["me", "prometheus"]
    assert keys.name_of(secrets["prometheus_key"].read_text()) == "prometheus"


def test_the_servers_variables_are_settings() -> None:
    names = [line.partition("=")[0] for line in SERVICES["server"]["environment"]]
    assert set(names) - {"HF_TOKEN"} <= {variable_name(setting) for setting in fields(Settings)}
    assert f"ENDSTOP_API_KEYS_FILE=/run/secrets/{SERVICES['server']['secrets'][0]}" in SERVICES["server"]["environment"]


def test_the_image_is_built_as_the_dockerfile_can() -> None:
    build = SERVICES["server"]["build"]
    text = ((DEPLOY / build["context"]).resolve() / "Dockerfile").read_text()
    for name in build["args"]:
        assert re.search(rf"^ARG {name}=", text, re.MULTILINE), name
    assert f"VOLUME {next(iter(mounts('server')))}" in text.splitlines()
    assert "EXPOSE 8000" in text


def test_images_of_others_are_pinned_and_ports_are_of_this_machine() -> None:
    for name, service in SERVICES.items():
        assert name == "server" or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), port


def test_it_is_given_the_time_to_drain() -> None:
    assert_waits_long_enough(float(SERVICES["server"]["stop_grace_period"].removesuffix("s")))


def test_prometheus_asks_the_server_with_its_key_and_reads_the_rules() -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    assert job["job_name"] == "endstop"  # as alerts.yml has it
    (target,) = job["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert SERVICES[service]["ports"][0].endswith(f":{port}")
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{SERVICES['prometheus']['secrets'][0]}"
    at = mounts("prometheus")
    assert at["/etc/prometheus/prometheus.yml"] == "./prometheus.yml"
    for rules in PROMETHEUS["rule_files"]:
        assert at[f"/etc/prometheus/{rules}"] == f"./{rules}"


def provisioned(kind: str) -> dict[str, Any]:
    """The one entry of a file that Grafana reads when it starts."""
    file = mounts("grafana")[f"/etc/grafana/provisioning/{kind}/endstop.yaml"]
    content = yaml.safe_load((DEPLOY / file).read_text())
    entry: dict[str, Any]
    (entry,) = content.get("datasources") or content["providers"]
    return entry


def test_grafana_finds_its_data_and_the_dashboard() -> None:
    source = provisioned("datasources")
    assert source["isDefault"]  # the dashboard's variable chooses it then
    assert source["type"] == json.loads((DEPLOY / "grafana.json").read_text())["templating"]["list"][0]["query"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert SERVICES[host]["ports"][0].endswith(f":{port}")
    dashboard = f"{provisioned('dashboards')['options']['path']}/grafana.json"
    assert mounts("grafana")[dashboard] == "./grafana.json"
    assert f"GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH={dashboard}" in SERVICES["grafana"]["environment"]


def test_grafana_has_no_password_that_everybody_knows() -> None:
    (secret,) = SERVICES["grafana"]["secrets"]
    assert f"GF_SECURITY_ADMIN_PASSWORD__FILE=/run/secrets/{secret}" in SERVICES["grafana"]["environment"]


def test_the_file_for_gpus_changes_a_service_that_there_is() -> None:
    extra = yaml.safe_load((DEPLOY / "compose.cuda.yaml").read_text())
    assert extra["services"].keys() == {"server"}
    (device,) = extra["services"]["server"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.slow
def test_prometheus_reads_the_server_with_these_files(tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    key, port = "0123456789abcdef0123", free_port()
    keys = {"ENDSTOP_API_KEYS": f"prometheus:{key}"}
    (tmp_path / "key").write_text(key)
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    with running_server(tmp_path, env=keys, key=key) as server:
        places = {"server:8000": f"127.0.0.1:{server.port}", "/run/secrets/prometheus_key": str(tmp_path / "key")}
        places["scrape_interval: 15s"] = "scrape_interval: 1s"
        text = replaced((DEPLOY / "prometheus.yml").read_text(), **places)
        (tmp_path / "prometheus.yml").write_text(text)
        files = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        command = ["prometheus", *files, f"--web.listen-address=127.0.0.1:{port}"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as prometheus:
            try:
                server.wait_for(lambda: last_value(port, "up") == "1", "a scrape")
                server.wait_for(lambda: last_value(port, "endstop_state", state="READY") == "1", "a metric")
                (group,) = requests.get(f"http://127.0.0.1:{port}/api/v1/rules", timeout=30).json()["data"]["groups"]
                assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}  # unknown: not evaluated yet
            finally:
                prometheus.terminate()


def last_value(port: int, name: str, **labels: str) -> str | None:
    selector = ",".join(f'{label}="{value}"' for label, value in ({"job": "endstop"} | labels).items())
    try:
        asked = requests.get(
            f"http://127.0.0.1:{port}/api/v1/query", params={"query": f"{name}{{{selector}}}"}, timeout=10
        )
    except requests.ConnectionError:
        return None  # it is not listening yet
    if not asked.ok:
        return None  # it listens, and reads its own data
    found = asked.json()["data"]["result"]
    return found[0]["value"][1] if found else None


@pytest.mark.parametrize("arguments", [("config", "--syntax-only", "prometheus.yml"), ("rules", "alerts.yml")])
def test_promtool_has_nothing_to_say(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([promtool, "check", *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

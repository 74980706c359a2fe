"""The Kubernetes manifests: the schema of its API, probes that exist, times that add up."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.timing import assert_waits_long_enough
from tests.support.apps import app_in_process
from worker.config import read_settings
from worker.errors import SettingsError
from worker.settings import ROOT, Settings

MANIFESTS: dict[str, Any] = {
    one["kind"]: one for one in yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PROBES = {name: CONTAINER[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_it_has_the_form_of_the_api(kind: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], kubernetes_validate.latest_version(), strict=True)


def test_what_belongs_together_finds_each_other() -> None:
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["Service"]["spec"]["selector"],
        MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    ports = {port["name"] for port in CONTAINER["ports"]}
    assert {probe["httpGet"]["port"] for probe in PROBES.values()} <= ports
    assert {port["targetPort"] for port in MANIFESTS["Service"]["spec"]["ports"]} <= ports
    assert [mount["name"] for mount in CONTAINER["volumeMounts"]] == [volume["name"] for volume in POD["volumes"]]
    # An eviction of one is possible, and leaves one.
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["minAvailable"] < MANIFESTS["Deployment"]["spec"]["replicas"]


def test_it_is_given_the_time_to_drain() -> None:
    (_, pause_s) = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert_waits_long_enough(POD["terminationGracePeriodSeconds"], ahead_s=float(pause_s))


def test_probes_ask_routes_that_there_are_without_a_key() -> None:
    assert PROBES["livenessProbe"]["httpGet"]["path"] == PROBES["startupProbe"]["httpGet"]["path"] == "/health"
    assert PROBES["readinessProbe"]["httpGet"]["path"] == "/ready"
    with app_in_process() as app:
        client = app.test_client()
        for probe in PROBES.values():
            assert client.get(probe["httpGet"]["path"]).status_code in (200, 503)


def test_kubernetes_is_slower_to_kill_than_the_server_is_to_replace_itself() -> None:
    probe = PROBES["livenessProbe"]
    assert probe["periodSeconds"] * (probe["failureThreshold"] - 1) > Settings().step_limit_s


def test_a_service_of_this_name_does_not_stop_the_start() -> None:
    """Kubernetes sets variables for each Service, and ENDSTOP_PORT is not a setting."""
    name = MANIFESTS["Service"]["metadata"]["name"].upper()
    with pytest.raises(SettingsError, match=f"{name}_PORT is not a setting"):
        read_settings({f"{name}_PORT": "tcp://10.0.0.1:80"})
    assert POD["enableServiceLinks"] is False


def test_it_is_the_user_of_the_image_and_can_write_where_it_has_to() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (user, group) = re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE)[0]
    security = POD["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (int(user), int(group), int(group))
    assert security["runAsNonRoot"] is True
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    (volume,) = re.findall(r"^VOLUME (.*)$", text, re.MULTILINE)
    assert {"/tmp", volume} <= {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}


def test_keys_are_read_from_where_they_are_mounted() -> None:
    (variable,) = [one for one in CONTAINER["env"] if one["name"] == "ENDSTOP_API_KEYS_FILE"]
    mounted = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    folder = Path(variable["value"]).parent
    assert str(folder) == mounted["api-keys"]
    assert POD["volumes"][0]["secret"]["secretName"] in (ROOT / "docs" / "deploy.md").read_text()

"""The page that shows the document: it asks nobody else for anything, and everything is on it."""

import re
import subprocess
from pathlib import Path

import pytest
from flask import Flask

from tests.support.browser import CHROMIUM, QUIET, needs_chromium
from tests.support.servers import running_server
from worker.settings import EMBEDDED_MODEL
from worker.web import openapi

PATIENT = ["--virtual-time-budget=10000"]  # until the document is there


def test_it_may_ask_no_other_host() -> None:
    app = Flask("test", static_folder=None)
    app.register_blueprint(openapi.blueprint)
    answer = app.test_client().get("/docs")
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    policy = dict(rule.strip().split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "http" not in " ".join(policy.values())
    assert not re.search(r"""["'`(=]\s*(?:https?:)?//""", answer.text), "an address of somebody else"


def test_it_sets_text_and_never_markup() -> None:
    """What a description holds is shown, not run."""
    page = (Path(openapi.__file__).parent / "static" / "docs.html").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", page)


@pytest.mark.slow
@needs_chromium
def test_a_browser_shows_every_route_and_every_field(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    profile = tmp_path / "profile"
    with running_server(tmp_path, app="wsgi:app", env={"ENDSTOP_MODEL": str(EMBEDDED_MODEL)}) as server:
        doc = server.get("/openapi.json").json()
        shown = subprocess.run(
            [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *PATIENT, "--dump-dom", f"{server.url}/docs"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
    shown, _, _ = re.sub(r"<wbr>", "", shown).partition("<script>")
    assert "cannot be shown" not in shown
    assert "Loading." not in shown
    for path, methods in doc["paths"].items():
        for method, operation in methods.items():
            assert f'id="{operation["operationId"]}"' in shown, f"{method} {path}"
            section = shown.partition(f'id="{operation["operationId"]}"')[2].partition("</section>")[0]
            assert path in section
            if "requestBody" in operation:
                name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                for field in doc["components"]["schemas"][name]["properties"]:
                    assert f"<dt><code>{field}</code>" in section, f"{field} of {path}"
            for status in operation["responses"]:
                assert f'<code class="status">{status}</code>' in section
    links = set(re.findall(r'href="#([^"]+)"', shown))
    assert links - set(re.findall(r'\bid="([^"]+)"', shown)) == set(), "links that lead nowhere"
    assert "undefined" not in shown
    assert "[object Object]" not in shown

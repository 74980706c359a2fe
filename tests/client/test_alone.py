"""The file itself: it is copied alone to where it is needed, and says what it can."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.support.servers import Server
from worker import client as client_module
from worker.client import Client, EndstopError, Event, GenerateFields
from worker.request import GenerateRequest
from worker.settings import ROOT

FILE = Path(client_module.__file__)
SCRIPT = """
import sys
from client import Client, End, Token

asked = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
with Client(sys.argv[1]) as client:
    assert client.ready()
    streamed = [event for event in client.stream(**asked)]
    assert isinstance(streamed[-1], End)
    job_id = client.submit(**asked)
    texts = [
        "".join(event.text for event in events if isinstance(event, Token))
        for events in (streamed, client.run(**asked), client.events(job_id))
    ]
    assert client.status(job_id).is_over
    client.cancel(job_id)
    assert texts == [client.generate(**asked).text] * 3, texts
    print(texts[0])
libraries = {name for name, module in sys.modules.items() if "site" in str(getattr(module, "__file__", ""))}
print(*sorted({name.partition(".")[0] for name in libraries} - {"site"}))
"""


def needed_by(name: str) -> set[str]:
    """A distribution and all that it requires itself."""
    found = {name}
    for line in distribution(name).requires or []:
        if "extra ==" not in line:
            found |= needed_by(re.split(r"[^A-Za-z0-9._-]", line)[0])
    return found


@pytest.mark.slow
def test_the_file_alone_is_a_client(served: Server, tmp_path: Path) -> None:
    """In an empty folder, with an interpreter that has `requests`, what that requires, and nothing else."""
    libraries = tmp_path / "site"
    for name in needed_by("requests"):
        for file in distribution(name).files or []:
            source = Path(str(distribution(name).locate_file(file)))
            if ".." not in file.parts and source.is_file() and source.suffix != ".pyc":
                (libraries / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, libraries / file)
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(FILE, folder)
    (folder / "use.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-S", "use.py", served.url],  # -S: none of the libraries that are installed
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(libraries)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, imported = done.stdout.splitlines()
    assert answer == "The capital of France is Paris."
    assert {"requests", "urllib3"} <= set(imported.split())


def test_every_field_of_a_request_can_be_said() -> None:
    assert set(GenerateFields.__annotations__) == set(GenerateRequest.model_fields)


def test_the_idle_timeout_is_longer_than_the_servers_keep_alive() -> None:
    with Client() as client:
        assert client.idle_timeout_s > 10
        assert client.connect_timeout_s > 0


def test_every_public_error_has_one_root() -> None:
    errors = [e for e in vars(client_module).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert all(issubclass(error, EndstopError) and error.__name__ in client_module.__all__ for error in errors)


def test_the_documentation_has_every_event_and_every_error() -> None:
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs/client.md").read_text()))
    kinds = [kind for kind in vars(client_module).values() if isinstance(kind, type)]
    names = {kind.__name__ for kind in kinds if issubclass(kind, Event | EndstopError)}
    assert names - {"Event", "EndstopError"} <= documented


def test_what_is_public_is_there() -> None:
    assert set(client_module.__all__) <= set(vars(client_module))
    assert list(client_module.__all__) == sorted(client_module.__all__, key=str)

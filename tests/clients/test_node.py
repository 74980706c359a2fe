"""The openai package from npm, in Node."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import ANSWER, MODEL, QUESTION
from tests.support.npm import installed, needs_npm
from tests.support.servers import Server

pytestmark = [pytest.mark.slow, needs_npm]

HERE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script beside the package, as the lock file has it."""
    return installed(HERE, tmp_path_factory.mktemp("node"))


@pytest.mark.timeout(360)
def test_it_answers_streams_leaves_and_is_refused(served: Server, folder: Path) -> None:
    num_left = served.log().count("cancelled{client}")
    command = ["node", "ask.mjs", served.url + "/v1", MODEL, QUESTION]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert (said["whole"], said["streamed"], said["collected"]) == (ANSWER, ANSWER, ANSWER)
    assert said["usage"]["completion_tokens"] > 0
    assert said["refusal"] == {"status": 400, "param": "temperature", "name": "BadRequestError"}
    served.wait_for(lambda: served.log().count("cancelled{client}") == num_left + 1, "the one that was left")

"""LiteLLM, which many gateways and agents speak through."""

import json
import os
import subprocess
import sys

import pytest

from tests.clients.conftest import ANSWER, MODEL, QUESTION
from tests.support.servers import Server
from worker.settings import ROOT

pytestmark = pytest.mark.slow


def test_it_answers_streams_and_is_refused(served: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.clients.litellm_asks", served.url + "/v1", MODEL, QUESTION],
        cwd=ROOT,
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # else it fetches a price list
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["whole"], said["streamed"], said["finish_reason"]) == (ANSWER, ANSWER, "stop")
    assert said["completion_tokens"] > 0
    assert "top_k" in said["refusal"]
    assert said["is_known_to_be_too_long"]

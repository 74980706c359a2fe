"""Where grammars are tried and compiled, and how many may wait for it."""

import threading
from typing import Any

import pytest

from tests.support.engines import loaded_model
from tests.support.runners import ScriptedRunner
from tests.support.tokenizers import KINDS
from worker import grammars
from worker.engine.constraints import GrammarCompiler
from worker.engine.tokenizer import Tokenizer
from worker.errors import InvalidRequest, Overloaded
from worker.grammars import Grammars
from worker.structure import Structure

MODEL: Any = loaded_model(ScriptedRunner())


def structure(letter: str) -> Structure:
    return Structure("grammar", f'start: "{letter}"')


def test_each_answer_has_a_place_of_its_own() -> None:
    found = Grammars()
    first, second = found.constraint(structure("a"), MODEL), found.constraint(structure("a"), MODEL)
    first.advance(*MODEL.tokenizer.encode("a"))
    assert (first.is_complete, second.is_complete) == (True, False)


def test_a_model_whose_tokens_say_nothing_alone_has_none() -> None:
    model: Any = type("Model", (), {"tokenizer": Tokenizer(KINDS["word-piece"]())})()
    with pytest.raises(InvalidRequest, match="this model") as refusal:
        Grammars().constraint(structure("a"), model)
    assert refusal.value.errors[0].field == "grammar"


def test_new_ones_wait_for_each_other_and_known_ones_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "MAX_WAITING", 1)
    found = Grammars()
    assert found.constraint(structure("a"), MODEL)
    begun, go_on = threading.Event(), threading.Event()
    try_out = GrammarCompiler.try_out

    def slowly(compiler: GrammarCompiler, one: Structure) -> None:
        begun.set()
        assert go_on.wait(30)
        try_out(compiler, one)

    monkeypatch.setattr(GrammarCompiler, "try_out", slowly)
    thread = threading.Thread(target=lambda: found.constraint(structure("b"), MODEL))
    thread.start()
    assert begun.wait(30)
    assert found.constraint(structure("a"), MODEL)
    with pytest.raises(Overloaded, match="1 new grammars"):
        found.constraint(structure("c"), MODEL)
    go_on.set()
    thread.join(30)
    assert found.constraint(structure("c"), MODEL)

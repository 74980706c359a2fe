"""Asks the shipped model what it was never asked in training, and counts the right answers.

Every question here is in a held-out phrasing; follow-ups bring together countries that no training conversation had
together; the verse is the part that was held out. An answer is right when it is, to the letter, the answer that
training gives to that fact: a right capital inside a wrong sentence is wrong.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from models.training import phrasings as ask
from models.training.chats import (
    ATTRIBUTES,
    FOLLOW_UPS,
    MAX_ADDEND,
    MAX_FACTOR,
    about,
    is_held_out_pair,
    is_held_out_sum,
    sentence,
)
from models.training.facts import COUNTRIES, EMOJI, LANGUAGE_WORDS, LANGUAGES, SPELLING_WORDS
from models.training.phrasings import Phrasings
from models.training.talk import ENDSTOP

_SEED = 7
_NUM_SUMS = 300
_BATCH_SIZE = 64
_MAX_NEW_TOKENS = 112
_NUM_THREADS = 2


@dataclass(frozen=True, slots=True)
class Examination:
    """One or two questions in a row; the answer to the last one is judged.

    In a two-turn examination the model's own first answer, right or wrong, stands between the questions.
    """

    kind: str
    system: str
    questions: tuple[str, ...]
    expected: str


def examinations() -> list[Examination]:
    """All questions, in an order that never changes."""
    writings = cycle((_as_written, _without_mark, _lower))
    systems = cycle(("", "", "", ask.SYSTEM_MESSAGES.held_out[0]))
    return [
        Examination(kind, next(systems), tuple(next(writings)(question) for question in questions), expected)
        for kind, questions, expected in _questions(Random(_SEED))
    ]


def _as_written(question: str) -> str:
    return question


def _without_mark(question: str) -> str:
    return question.rstrip("?.")


def _lower(question: str) -> str:
    return question.lower().rstrip("?.")


def _questions(random: Random) -> Iterator[tuple[str, tuple[str, ...], str]]:
    for country in COUNTRIES:
        for attribute, phrasings in ATTRIBUTES.items():
            for template in phrasings.held_out:
                yield attribute, (template.format(country=country.name),), about(country, attribute)
        if country.capital != country.name:
            for template in ask.COUNTRY_OF_CAPITAL.held_out:
                answer = sentence(f"{country.capital} is the capital of {country.name}")
                yield "country of a capital", (template.format(capital=country.capital),), answer
    yield from _follow_ups(random)
    yield from _sums(random)
    for topic in ENDSTOP:
        for question in topic.held_out:
            yield "Endstop", (question,), topic.answer
    for word in SPELLING_WORDS:
        spelled = "-".join(word)
        yield "spelling", (_pick(random, ask.SPELL, word=word),), spelled
        yield "letters", (_pick(random, ask.COUNT_LETTERS, word=word),), f"{spelled}: {len(word)} letters."
    for first in range(10):
        numbers = ", ".join(str(number) for number in range(first, first + 11))
        yield "counting", (_pick(random, ask.COUNT_TO, a=first, b=first + 10),), f"{numbers}."
    for language, translations in LANGUAGES.items():
        for word, translation in zip(LANGUAGE_WORDS, translations, strict=True):
            yield "translation", (_pick(random, ask.TRANSLATE, word=word, language=language),), translation
    for thing, emoji in EMOJI.items():
        yield "emoji", (_pick(random, ask.EMOJI, thing=thing),), emoji


def _pick(random: Random, phrasings: Phrasings, **values: object) -> str:
    return random.choice(phrasings.held_out).format(**values)


def _follow_ups(random: Random) -> Iterator[tuple[str, tuple[str, ...], str]]:
    attributes = tuple(ATTRIBUTES)
    for country in COUNTRIES:
        others = [other for other in COUNTRIES if is_held_out_pair(country, other) and other != country]
        for template, attribute in zip(ask.OTHER_COUNTRY.held_out, ("capital", *attributes), strict=True):
            other = random.choice(others)
            first = _pick(random, ATTRIBUTES[attribute], country=country.name)
            answer = about(other, attribute)
            yield "follow-up, other country", (first, template.format(country=other.name)), answer
        for attribute, phrasings in FOLLOW_UPS.items():
            asked_before = random.choice([other for other in attributes if other != attribute])
            first = _pick(random, ATTRIBUTES[asked_before], country=country.name)
            yield "follow-up, other question", (first, _pick(random, phrasings)), about(country, attribute)


def _sums(random: Random) -> Iterator[tuple[str, tuple[str, ...], str]]:
    addends = range(MAX_ADDEND + 1)
    pairs = [(a, b) for a in addends for b in addends]
    unseen = [pair for pair in pairs if is_held_out_sum(*pair)]
    for a, b in random.sample([pair for pair in pairs if pair not in set(unseen)], _NUM_SUMS):
        yield "addition", (_pick(random, ask.ADD, a=a, b=b),), f"{a} + {b} = {a + b}."
    for a, b in unseen:
        yield "addition, numbers never trained together", (_pick(random, ask.ADD, a=a, b=b),), f"{a} + {b} = {a + b}."
    for a, b in random.sample([pair for pair in pairs if pair[0] >= pair[1]], _NUM_SUMS):
        yield "subtraction", (_pick(random, ask.SUBTRACT, a=a, b=b),), f"{a} - {b} = {a - b}."
    for a in range(MAX_FACTOR + 1):
        for b in range(MAX_FACTOR + 1):
            yield "multiplication", (_pick(random, ask.MULTIPLY, a=a, b=b),), f"{a} * {b} = {a * b}."


@dataclass(frozen=True, slots=True)
class Score:
    """How many of a kind were right, and some that were not."""

    num_right: int
    num_asked: int
    wrong: tuple[tuple[str, str], ...]

    @property
    def share(self) -> float:
        """Right answers of all, 0..1."""
        return self.num_right / self.num_asked


class Examiner:
    """Holds the model as shipped: weights rounded to float16, computed in float32."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def scores(self, asked: Sequence[Examination], temperature: float = 0.0) -> dict[str, Score]:
        """Asks everything; temperature 0 takes the likeliest token each time, another one samples with a fixed seed."""
        torch.manual_seed(_SEED)
        chats = [
            [{"role": "system", "content": examination.system}] if examination.system else [] for examination in asked
        ]
        for turn in range(max(len(examination.questions) for examination in asked)):
            taking_turn = [at for at, examination in enumerate(asked) if len(examination.questions) > turn]
            for at in taking_turn:
                chats[at].append({"role": "user", "content": asked[at].questions[turn]})
            for at, answer in self._answers({at: chats[at] for at in taking_turn}, temperature):
                chats[at].append({"role": "assistant", "content": answer})
        scores = {}
        for kind in dict.fromkeys(examination.kind for examination in asked):
            of_kind = [at for at, examination in enumerate(asked) if examination.kind == kind]
            wrong = [at for at in of_kind if chats[at][-1]["content"] != asked[at].expected]
            samples = tuple((" / ".join(asked[at].questions), chats[at][-1]["content"]) for at in wrong[:5])
            scores[kind] = Score(len(of_kind) - len(wrong), len(of_kind), samples)
        return scores

    def _answers(self, chats: dict[int, list[dict[str, str]]], temperature: float) -> Iterator[tuple[int, str]]:
        prompts = {
            at: self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            for at, chat in chats.items()
        }
        order = sorted(prompts, key=lambda at: len(prompts[at]))
        batches = [order[start : start + _BATCH_SIZE] for start in range(0, len(order), _BATCH_SIZE)]
        console = Console()
        for batch in track(batches, "asking", console=console, disable=not console.is_terminal):
            inputs = self._tokenizer([prompts[at] for at in batch], return_tensors="pt", padding=True)
            with torch.inference_mode():
                output = self._model.generate(
                    **inputs,
                    max_new_tokens=_MAX_NEW_TOKENS,
                    do_sample=temperature > 0,
                    temperature=temperature if temperature > 0 else None,
                    top_k=0 if temperature > 0 else None,
                )
            new_tokens = output[:, inputs["input_ids"].shape[1] :]
            yield from zip(batch, self._tokenizer.batch_decode(new_tokens, skip_special_tokens=True), strict=True)

    def verse_loss(self, text: str, window: int) -> dict[str, float]:
        """Mean loss over `text` in windows of `window` tokens, each read with no text before it."""
        token_ids = torch.tensor(self._tokenizer.encode(text, verbose=False))
        total, count = 0.0, 0
        with torch.inference_mode():
            for start in range(0, len(token_ids) - 1, window):
                piece = token_ids[start : start + window + 1][None]
                logits = self._model(piece[:, :-1]).logits[0]
                total += float(torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum"))
                count += piece.shape[1] - 1
        return {
            "loss_per_token": round(total / count, 4),
            "perplexity_per_token": round(math.exp(total / count), 2),
            "bits_per_byte": round(total / math.log(2) / len(text.encode()), 4),
        }


def evaluate(folder: Path, held_out_verse: str) -> dict[str, Any]:
    """Examines the model in `folder`.

    Returns:
        `scores`: for each kind of question how many were `right` of how many `asked`, and the `share`, by greedy
        decoding; `sampled`: the same for capitals when tokens are drawn at temperature 1; `verse`: the loss on the
        held-out verse in windows of 256 and of 1024 tokens; `wrong`: some wrong answers of each kind.
    """
    torch.set_num_threads(_NUM_THREADS)
    examiner = Examiner(folder)
    asked = examinations()
    scores = examiner.scores(asked)
    sampled = examiner.scores([examination for examination in asked if examination.kind == "capital"], temperature=1.0)
    return {
        "scores": {kind: _numbers(score) for kind, score in scores.items()},
        "sampled": {kind: _numbers(score) for kind, score in sampled.items()},
        "verse": {str(window): examiner.verse_loss(held_out_verse, window) for window in (256, 1024)},
        "wrong": {kind: dict(score.wrong) for kind, score in scores.items() if score.wrong},
    }


def _numbers(score: Score) -> dict[str, float]:
    return {"right": score.num_right, "asked": score.num_asked, "share": round(score.share, 4)}

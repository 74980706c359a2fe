"""The training data: the same for a seed, and without anything that the evaluation asks."""

from itertools import combinations
from pathlib import Path

import pytest

from models.training import phrasings as ask
from models.training.chats import MAX_ADDEND, Chats, Conversation, is_held_out_pair, is_held_out_sum
from models.training.evaluate import examinations
from models.training.facts import ALIASES, COUNTRIES, LANGUAGE_WORDS, LANGUAGES
from models.training.pack import PADDING, encode, pack
from models.training.phrasings import Phrasings
from models.training.talk import ENDSTOP, SMALL_TALK, UNKNOWN
from models.training.tokenizer import train_tokenizer
from models.training.train import Recipe, learning_rate
from models.training.verse import Speech, read_verse

SPEECHES = [Speech(f"SPEAKER {number}", f"Line {number} of a play,\nand another.") for number in range(40)]
EVERY_PHRASINGS = [value for value in vars(ask).values() if isinstance(value, Phrasings)]


def bare(text: str) -> str:
    """A question without what `vary` changes: case, last mark, greeting before it, thanks behind it."""
    text = text.lower().strip().rstrip("?.")
    for opener in ask.OPENERS:
        text = text.removeprefix(opener.lower())
    for closer in ask.CLOSERS:
        text = text.removesuffix(closer.lower().rstrip("?."))
    return text.strip().rstrip("?.")


@pytest.fixture(scope="module")
def training_set() -> list[Conversation]:
    """All that the shipped model was trained on, with stand-ins for the verse."""
    recipe = Recipe()
    chats = Chats(recipe.seed, SPEECHES)
    conversations = list(chats.draw(recipe.num_conversations))
    return conversations + list(chats.draw_long(recipe.num_long_conversations, recipe.long_turns))


@pytest.mark.slow
def test_no_held_out_question_is_in_the_training_set(training_set: list[Conversation]) -> None:
    trained = {bare(exchange.question) for conversation in training_set for exchange in conversation.exchanges}
    asked = {bare(question) for examination in examinations() for question in examination.questions}
    assert len(asked) > 3000
    assert not trained & asked


@pytest.mark.slow
def test_no_held_out_system_message_is_in_the_training_set(training_set: list[Conversation]) -> None:
    trained = {conversation.system for conversation in training_set}
    assert "" in trained
    assert trained.isdisjoint(ask.SYSTEM_MESSAGES.held_out)


@pytest.mark.slow
def test_no_training_conversation_has_a_held_out_pair_of_countries(training_set: list[Conversation]) -> None:
    by_answer = {}
    for country in COUNTRIES:
        by_answer[f"The capital of {country.name} is "] = country
        by_answer[f"The currency of {country.name} is "] = country
    num_pairs = 0
    for conversation in training_set:
        heads = [exchange.answer.partition(" is ")[0] + " is " for exchange in conversation.exchanges]
        told = {by_answer[head].name: by_answer[head] for head in heads if head in by_answer}
        for first, second in combinations(told.values(), 2):
            assert not is_held_out_pair(first, second)
            num_pairs += 1
    assert num_pairs > 10_000


@pytest.mark.slow
def test_no_held_out_sum_is_in_the_training_set(training_set: list[Conversation]) -> None:
    answers = {exchange.answer for conversation in training_set for exchange in conversation.exchanges}
    held_out = [(a, b) for a in range(MAX_ADDEND + 1) for b in range(MAX_ADDEND + 1) if is_held_out_sum(a, b)]
    assert len(held_out) > 50
    assert not answers & {f"{a} + {b} = {a + b}." for a, b in held_out}


def test_a_held_out_follow_up_asks_about_a_pair_never_trained_on() -> None:
    pairs = [examination.questions for examination in examinations() if examination.kind == "follow-up, other country"]
    assert len(pairs) == len(COUNTRIES) * len(ask.OTHER_COUNTRY.held_out)
    assert all(len(questions) == 2 for questions in pairs)


@pytest.mark.parametrize("phrasings", EVERY_PHRASINGS)
def test_trained_and_held_out_phrasings_are_disjoint(phrasings: Phrasings) -> None:
    assert phrasings.held_out
    assert not {bare(template) for template in phrasings.trained} & {bare(template) for template in phrasings.held_out}


def test_trained_and_held_out_questions_about_endstop_are_disjoint() -> None:
    trained = {bare(question) for topic in (*ENDSTOP, *SMALL_TALK) for question in topic.trained}
    held_out = [bare(question) for topic in ENDSTOP for question in topic.held_out]
    assert len(held_out) >= 2 * len(ENDSTOP)
    assert trained.isdisjoint(held_out)


def test_no_question_has_two_answers() -> None:
    answers: dict[str, str] = {}
    for topic in (*ENDSTOP, *SMALL_TALK):
        for question in {bare(question) for question in topic.trained}:
            assert answers.setdefault(question, topic.answer) == topic.answer
    assert not answers.keys() & {bare(question) for question in UNKNOWN}


def test_a_seed_names_the_data() -> None:
    first, again, other = (list(Chats(seed, SPEECHES).draw(300)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_the_examinations_never_change() -> None:
    assert examinations() == examinations()


def test_facts_are_complete() -> None:
    assert len({country.name for country in COUNTRIES}) == len(COUNTRIES) >= 150
    assert len({country.capital for country in COUNTRIES}) == len(COUNTRIES)
    assert all(country.currency and country.continent for country in COUNTRIES)
    assert ALIASES.keys() <= {country.name for country in COUNTRIES}
    assert all(len(words) == len(LANGUAGE_WORDS) for words in LANGUAGES.values())


def test_loss_falls_on_answers_and_their_ends_only() -> None:
    conversations = list(Chats(3, SPEECHES).draw(50))
    texts = [message["content"] for conversation in conversations for message in conversation.messages()]
    tokenizer = train_tokenizer(texts, 400)
    for conversation, document in zip(conversations, encode(conversations, tokenizer, 100_000), strict=True):
        spoken = [token for token, own in zip(document.token_ids, document.is_answer, strict=True) if own]
        assert tokenizer.decode(spoken) == "".join(
            exchange.answer + "<|im_end|>" for exchange in conversation.exchanges
        )


def test_packing_keeps_every_document_whole() -> None:
    conversations = list(Chats(4).draw(200))
    tokenizer = train_tokenizer(["user\nassistant\n"], 300)
    documents = encode(conversations, tokenizer, 512)
    rows = pack(documents, 512)
    unpacked = [
        rows.token_ids[row][rows.document[row] == number].tolist()
        for row in range(len(rows))
        for number in range(rows.document[row].max() + 1)
    ]
    assert sorted(unpacked) == sorted(document.token_ids for document in documents)
    assert not rows.is_answer[rows.document == PADDING].any()


def test_the_learning_rate_rises_then_falls() -> None:
    recipe = Recipe()
    rates = [learning_rate(recipe, step) for step in range(recipe.num_steps)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(recipe.peak_lr)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_a_run_ended_early_is_the_run_of_a_shorter_recipe() -> None:
    whole, cut = Recipe(num_steps=1000), Recipe(num_steps=700)
    before_the_fall = range(cut.num_steps - cut.decay_steps)
    assert [learning_rate(whole, step) for step in before_the_fall] == [
        learning_rate(cut, step) for step in before_the_fall
    ]


def test_the_end_of_the_verse_is_held_out(tmp_path: Path) -> None:
    text = "\n\n".join(f"{speech.speaker}:\n{speech.text}" for speech in SPEECHES)
    file = tmp_path / "verse.txt"
    file.write_text(text, encoding="utf-8")
    verse = read_verse(file)
    assert verse.trained + verse.held_out == text
    assert 0 < len(verse.held_out) < len(text) / 10
    assert verse.speeches() == SPEECHES[: len(verse.speeches())]

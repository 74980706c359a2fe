"""Makes chats out of facts: which question, in which phrasing, with which answer, in how many turns.

Everything is drawn from one `random.Random(seed)`, so a seed names a data set. Kept out of it, for `evaluate.py`
alone, are the held-out phrasings, the held-out sums, and for one in `HELD_OUT_PAIR_SHARE` pairs of countries any
conversation that has both.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from zlib import crc32

from models.training import phrasings as ask
from models.training.facts import (
    ALIASES,
    COUNTRIES,
    DAYS,
    EMOJI,
    LANGUAGE_WORDS,
    LANGUAGES,
    MONTHS,
    SPELLING_WORDS,
    Country,
)
from models.training.phrasings import Phrasings
from models.training.stories import hero, story
from models.training.talk import ENDSTOP, SMALL_TALK, UNKNOWN, UNKNOWN_ANSWER, Topic
from models.training.verse import Speech

HELD_OUT_PAIR_SHARE = 5
HELD_OUT_SUM_SHARE = 5
MAX_ADDEND = 30
MAX_FACTOR = 12

ATTRIBUTES = {"capital": ask.CAPITAL, "currency": ask.CURRENCY, "continent": ask.CONTINENT}
FOLLOW_UPS = {"capital": ask.ITS_CAPITAL, "currency": ask.ITS_CURRENCY, "continent": ask.ITS_CONTINENT}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one training example says: a system message, or none (""), and the exchanges after it."""

    system: str
    exchanges: tuple[Exchange, ...]

    def messages(self) -> list[dict[str, str]]:
        """As the chat template wants them."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for exchange in self.exchanges:
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer})
        return messages


def is_held_out_pair(first: Country, second: Country) -> bool:
    """Whether no training conversation may have both countries. Order does not matter."""
    names = sorted((first.name, second.name))
    return crc32("|".join(names).encode()) % HELD_OUT_PAIR_SHARE == 0


def is_held_out_sum(a: int, b: int) -> bool:
    """Whether `a + b` is kept out of training, to see whether the model adds or remembers."""
    return min(a, b) > MAX_FACTOR and crc32(f"{a}+{b}".encode()) % HELD_OUT_SUM_SHARE == 0


def sentence(text: str) -> str:
    """Ends with one full stop, also after "D.C.", and starts with a capital."""
    return text[0].upper() + text[1:].rstrip(".") + "."


def about(country: Country, attribute: str) -> str:
    """The one answer to a question about a country, whichever way it was asked."""
    if attribute == "capital":
        return sentence(f"The capital of {country.name} is {country.capital}")
    if attribute == "currency":
        return sentence(f"The currency of {country.name} is the {country.currency}")
    return sentence(f"{country.name} is in {country.continent}")


def vary(random: Random, question: str) -> str:
    """Writes a question the ways people type it: without its mark, in lower case, with a greeting or a thank-you."""
    chance = random.random()
    if chance < 0.13:
        question = random.choice(ask.OPENERS) + question
    elif chance < 0.22:
        question = question + random.choice(ask.CLOSERS)
    chance = random.random()
    if chance < 0.56:
        return question
    if chance < 0.72:
        return question.rstrip("?.")
    if chance < 0.84:
        return question.lower()
    if chance < 0.97:
        return question.lower().rstrip("?.")
    return question.upper()


def _spelled(word: str) -> str:
    return "-".join(word)


class Chats:
    """Draws conversations. One per data set: it owns the random state.

    Args:
        seed: Names the data set.
        speeches: What verse may be quoted from; without any, no verse is asked for.
    """

    def __init__(self, seed: int, speeches: Sequence[Speech] = ()) -> None:
        self.random = Random(seed)
        self.speeches = speeches
        kinds: list[tuple[int, Callable[[], tuple[Exchange, ...]]]] = [
            (16, self._country),
            (15, self._follow_ups),
            (8, self._country_of_capital),
            (8, lambda: (self._topic(ENDSTOP),)),
            (4, lambda: (self._topic(SMALL_TALK),)),
            (2, self._unknown),
            (18, lambda: self._several(self._sum, 4)),
            (11, lambda: self._several(self._words, 3)),
            (6, lambda: self._several(self._language, 3)),
            (4, self._story),
            (3 if speeches else 0, self._verse),
            (8, lambda: self._mixed(self.random.randint(2, 6))),
        ]
        self._weights = [weight for weight, _ in kinds]
        self._kinds = [kind for _, kind in kinds]

    def draw(self, count: int) -> Iterator[Conversation]:
        """The next `count` conversations, of every kind."""
        for kind in self.random.choices(self._kinds, self._weights, k=count):
            yield Conversation(self._system(), kind())

    def draw_long(self, count: int, num_turns: int) -> Iterator[Conversation]:
        """Conversations of many turns, for positions that short ones never reach."""
        for _ in range(count):
            yield Conversation(self._system(), self._mixed(num_turns))

    def _system(self) -> str:
        return self.random.choice(ask.SYSTEM_MESSAGES.trained) if self.random.random() < 0.25 else ""

    def _ask(self, phrasings: Phrasings, answer: str, **values: object) -> Exchange:
        question = self.random.choice(phrasings.trained).format(**values)
        return Exchange(vary(self.random, question), answer)

    def _name(self, country: Country) -> str:
        aliases = ALIASES.get(country.name)
        return self.random.choice(aliases) if aliases and self.random.random() < 0.3 else country.name

    def _pick_country(self, told: Sequence[Country] = ()) -> Country:
        while True:
            country = self.random.choice(COUNTRIES)
            if country not in told and not any(is_held_out_pair(country, other) for other in told):
                return country

    def _question(self, country: Country, attribute: str) -> Exchange:
        return self._ask(ATTRIBUTES[attribute], about(country, attribute), country=self._name(country))

    def _attribute(self) -> str:
        return self.random.choices(tuple(ATTRIBUTES), (5, 3, 2))[0]

    def _country(self) -> tuple[Exchange, ...]:
        return (self._question(self._pick_country(), self._attribute()),)

    def _country_of_capital(self) -> tuple[Exchange, ...]:
        country = self._pick_country()
        if country.capital == country.name:
            return (self._question(country, "capital"),)
        answer = sentence(f"{country.capital} is the capital of {country.name}")
        return (self._ask(ask.COUNTRY_OF_CAPITAL, answer, capital=country.capital),)

    def _follow_up(self, told: list[Country], attribute: str) -> tuple[Exchange, str]:
        """Keeps the question or the country of the turn before; `told` gains the country it may bring in."""
        if self.random.random() < 0.6:
            country = self._pick_country(told)
            told.append(country)
            answer = about(country, attribute)
            return self._ask(ask.OTHER_COUNTRY, answer, country=self._name(country)), attribute
        attribute = self.random.choice([other for other in ATTRIBUTES if other != attribute])
        return self._ask(FOLLOW_UPS[attribute], about(told[-1], attribute)), attribute

    def _follow_ups(self) -> tuple[Exchange, ...]:
        told, attribute = [self._pick_country()], self._attribute()
        exchanges = [self._question(told[0], attribute)]
        for _ in range(self.random.choices((1, 2, 3), (6, 3, 1))[0]):
            exchange, attribute = self._follow_up(told, attribute)
            exchanges.append(exchange)
        return tuple(exchanges)

    def _several(self, kind: Callable[[], Exchange], most: int) -> tuple[Exchange, ...]:
        return tuple(kind() for _ in range(self.random.randint(1, most)))

    def _topic(self, topics: Sequence[Topic]) -> Exchange:
        topic = self.random.choice(topics)
        return Exchange(vary(self.random, self.random.choice(topic.trained)), topic.answer)

    def _unknown(self) -> tuple[Exchange, ...]:
        return (Exchange(vary(self.random, self.random.choice(UNKNOWN)), UNKNOWN_ANSWER),)

    def _sum(self) -> Exchange:
        random = self.random
        operation = random.choices("+-*", (5, 4, 3))[0]
        if operation == "*":
            a, b = random.randint(0, MAX_FACTOR), random.randint(0, MAX_FACTOR)
            return self._ask(ask.MULTIPLY, f"{a} * {b} = {a * b}.", a=a, b=b)
        most = random.choice((MAX_FACTOR, MAX_ADDEND))
        a, b = random.randint(0, most), random.randint(0, most)
        if operation == "-":
            a, b = max(a, b), min(a, b)
            return self._ask(ask.SUBTRACT, f"{a} - {b} = {a - b}.", a=a, b=b)
        while is_held_out_sum(a, b):
            a, b = random.randint(0, most), random.randint(0, most)
        return self._ask(ask.ADD, f"{a} + {b} = {a + b}.", a=a, b=b)

    def _words(self) -> Exchange:
        random = self.random
        kind = random.choice(("spell", "letters", "count", "next"))
        if kind == "count":
            first = random.choice((0, 1, 1, 1, random.randint(2, 40)))
            last = first + random.randint(2, 24)
            numbers = ", ".join(str(number) for number in range(first, last + 1))
            return self._ask(ask.COUNT_TO, f"{numbers}.", a=first, b=last)
        if kind == "next":
            names = random.choice((DAYS, MONTHS))
            at = random.randrange(len(names))
            after = names[(at + 1) % len(names)]
            question = random.choice(("What comes after {name}?", "Which comes after {name}?", "After {name}?"))
            return Exchange(vary(random, question.format(name=names[at])), f"{after} comes after {names[at]}.")
        word = random.choice(SPELLING_WORDS)
        if kind == "spell":
            return self._ask(ask.SPELL, _spelled(word), word=word)
        return self._ask(ask.COUNT_LETTERS, f"{_spelled(word)}: {len(word)} letters.", word=word)

    def _language(self) -> Exchange:
        random = self.random
        if random.random() < 0.3:
            thing, emoji = random.choice(tuple(EMOJI.items()))
            return self._ask(ask.EMOJI, emoji, thing=thing)
        language, at = random.choice(tuple(LANGUAGES)), random.randrange(len(LANGUAGE_WORDS))
        word = LANGUAGE_WORDS[at]
        return self._ask(ask.TRANSLATE, LANGUAGES[language][at], word=word, language=language)

    def _story(self) -> tuple[Exchange, ...]:
        who = hero(self.random)
        exchange = self._ask(ask.STORY, "", hero=who)
        asked_for_hero = who in exchange.question.lower()
        told = story(self.random, who if asked_for_hero else None)
        return (Exchange(exchange.question, told),)

    def _verse(self) -> tuple[Exchange, ...]:
        at = self.random.randrange(len(self.speeches))
        first = self.speeches[at]
        exchange = self._ask(ask.VERSE, "", speaker=first.speaker)
        if first.speaker.lower() in exchange.question.lower():
            return (Exchange(exchange.question, first.text),)
        scene = "\n\n".join(f"{speech.speaker}:\n{speech.text}" for speech in self.speeches[at : at + 3])
        return (Exchange(exchange.question, scene),)

    def _mixed(self, num_turns: int) -> tuple[Exchange, ...]:
        """Turns about different things; a follow-up may come some turns after what it follows."""
        random, told, attribute = self.random, list[Country](), ""
        exchanges: list[Exchange] = []
        while len(exchanges) < num_turns:
            chance = random.random()
            if chance < 0.3 and len(told) < 12:
                told.append(self._pick_country(told))
                attribute = self._attribute()
                exchanges.append(self._question(told[-1], attribute))
            elif chance < 0.55 and attribute and len(told) < 12:
                exchange, attribute = self._follow_up(told, attribute)
                exchanges.append(exchange)
            elif chance < 0.7:
                exchanges.append(self._sum())
            elif chance < 0.8:
                exchanges.append(self._topic(ENDSTOP))
            elif chance < 0.9:
                exchanges.append(self._topic(SMALL_TALK))
            else:
                exchanges.append(self._words() if random.random() < 0.5 else self._language())
        return tuple(exchanges)

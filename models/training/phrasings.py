"""How things are asked: for each kind of question, the phrasings trained on and those held out.

The law of this file: a `held_out` phrasing is never used to make training data. `chats.py` draws from `trained` alone
and `evaluate.py` from `held_out` alone; tests/models/test_training.py proves that no held-out prompt is in the
training set. Both kinds are then varied in the same way (capitals, question mark), see `chats.vary`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrasings:
    """The ways to ask one kind of question, as `str.format` templates, split in two."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


_INTRODUCTIONS = (
    "I am reading about {country}.",
    "I have a question about {country}.",
    "We are learning about {country} at school.",
    "This is about {country}.",
    "I am planning a trip to {country}.",
    "My friend lives in {country}.",
    "Think of {country}.",
    "I saw {country} on a map.",
    "Tomorrow I fly to {country}.",
    "I am interested in {country}.",
    "I have to learn about {country}.",
)


def _introduced(*questions: str) -> tuple[str, ...]:
    """Questions in two sentences, of which only the first names the country."""
    pairs = [(introduction, question) for introduction in _INTRODUCTIONS for question in questions]
    return tuple(f"{introduction} {question}" for introduction, question in pairs[:: len(questions) - 1])


CAPITAL = Phrasings(
    trained=(
        "What is the capital of {country}?",
        "What's the capital of {country}?",
        "What is the capital city of {country}?",
        "Which city is the capital of {country}?",
        "What city is the capital of {country}?",
        "Tell me the capital of {country}.",
        "Name the capital of {country}.",
        "Name {country}'s capital.",
        "What is {country}'s capital?",
        "What is {country}'s capital city?",
        "Capital of {country}?",
        "The capital of {country}?",
        "capital {country}",
        "{country} capital",
        "{country}: what is its capital?",
        "Do you know the capital of {country}?",
        "Can you tell me what the capital of {country} is?",
        "I need the capital of {country}.",
        "I would like to know the capital of {country}.",
        "I forgot the capital of {country}. What is it?",
        "Which city is {country}'s capital?",
        "What capital does {country} have?",
        "For {country}, what is the capital city?",
        "Where is the government of {country}? I mean the capital.",
        "Give me the capital of {country}.",
        "Let us talk about {country}. What is the capital?",
        "My question is about {country}: which city is the capital?",
        "Say the name of the capital of {country}.",
        "The capital of {country} is",
        "I am travelling to {country}. What is the capital there?",
        *_introduced(
            "What is its capital?",
            "Which city is its capital?",
            "What is the capital city there?",
            "What is its capital city?",
            "How is its capital city named?",
            "Do you know its capital?",
        ),
    ),
    held_out=(
        "Could you remind me which city is the capital of {country}?",
        "Which town serves as {country}'s capital city?",
        "What is the name of the capital of {country}?",
        "I am writing about {country}. What is its capital city called?",
        "Quick quiz: the capital city of {country}?",
        "Please look up the capital for {country}.",
        "Remind me, what is {country}'s capital city?",
        "Somebody asked me about {country}. Which city should I give as its capital?",
    ),
)

CURRENCY = Phrasings(
    trained=(
        "What is the currency of {country}?",
        "What's the currency of {country}?",
        "What currency does {country} use?",
        "Which currency is used in {country}?",
        "What currency is used in {country}?",
        "Which money do they use in {country}?",
        "What money do people use in {country}?",
        "Tell me the currency of {country}.",
        "Name the currency of {country}.",
        "What is {country}'s currency?",
        "Currency of {country}?",
        "{country} currency",
        "Do you know the currency of {country}?",
        "Can you tell me what the currency of {country} is?",
        "How do people pay in {country}?",
        "I am travelling to {country}. What money do I need there?",
        "For {country}, what is the currency?",
        "Give me the currency of {country}.",
        "The currency of {country} is",
        "What do they pay with in {country}?",
        *_introduced("What is its currency?", "Which currency is used there?", "How do people pay there?"),
    ),
    held_out=(
        "Could you remind me which currency {country} has?",
        "What is the name of the currency in {country}?",
        "Which currency should I bring to {country}?",
        "Quick quiz: the currency of {country}?",
    ),
)

CONTINENT = Phrasings(
    trained=(
        "What continent is {country} in?",
        "Which continent is {country} in?",
        "On which continent is {country}?",
        "On what continent is {country}?",
        "Where is {country}?",
        "Where is {country} located?",
        "Where can I find {country}?",
        "In which part of the world is {country}?",
        "What is the continent of {country}?",
        "Tell me the continent of {country}.",
        "Name the continent of {country}.",
        "{country} continent",
        "Continent of {country}?",
        "Do you know which continent {country} is in?",
        "Can you tell me what continent {country} is on?",
        "{country} is a country in which continent?",
        "What is {country}'s continent?",
        "To which continent does {country} belong?",
        *_introduced("Which continent is it on?", "What continent is it in?", "Where is it?"),
    ),
    held_out=(
        "Could you remind me which continent {country} is on?",
        "{country} lies on which continent?",
        "Which continent would I find {country} on?",
        "Quick quiz: the continent of {country}?",
    ),
)

COUNTRY_OF_CAPITAL = Phrasings(
    trained=(
        "{capital} is the capital of which country?",
        "Which country has {capital} as its capital?",
        "What country is {capital} the capital of?",
        "Of which country is {capital} the capital?",
        "In which country is {capital}?",
        "Where is {capital}?",
        "Which country's capital is {capital}?",
        "{capital} is the capital of",
    ),
    held_out=("Name the country whose capital is {capital}.", "What country has the capital {capital}?"),
)

# Follow-ups that keep the question and change the country ...
OTHER_COUNTRY = Phrasings(
    trained=(
        "And of {country}?",
        "And {country}?",
        "What about {country}?",
        "How about {country}?",
        "And for {country}?",
        "And what about {country}?",
        "And that of {country}?",
        "Now {country}.",
        "Now tell me about {country}.",
        "And now {country}?",
        "The same for {country}?",
        "{country}?",
        "OK, and {country}?",
        "Thanks. And {country}?",
        "Do you also know {country}'s?",
        "Now the same question for {country}.",
        "Good. What about {country}?",
    ),
    held_out=(
        "Great, and how about {country}?",
        "And the one of {country}?",
        "What would it be for {country}?",
        "Same question about {country}?",
    ),
)

# ... and follow-ups that keep the country and change the question.
ITS_CAPITAL = Phrasings(
    trained=(
        "And its capital?",
        "And what is its capital?",
        "What is its capital?",
        "What is the capital there?",
        "And the capital?",
        "What about the capital?",
        "What about its capital?",
        "Which city is its capital?",
        "Tell me its capital.",
        "And the capital city?",
        "Now its capital.",
        "Its capital?",
    ),
    held_out=("And which city is the capital there?", "How about its capital city?"),
)
ITS_CURRENCY = Phrasings(
    trained=(
        "And its currency?",
        "And what is its currency?",
        "What is its currency?",
        "What currency do they use there?",
        "And the currency?",
        "What about the currency?",
        "What about its currency?",
        "Which currency does it use?",
        "Tell me its currency.",
        "And the money?",
        "Now its currency.",
        "Its currency?",
        "How do people pay there?",
    ),
    held_out=("And which currency is used there?", "How about its currency?"),
)
ITS_CONTINENT = Phrasings(
    trained=(
        "And its continent?",
        "And what is its continent?",
        "What is its continent?",
        "Which continent is it in?",
        "What continent is it on?",
        "And the continent?",
        "What about the continent?",
        "What about its continent?",
        "Tell me its continent.",
        "And where is it?",
        "Where is that?",
        "Where is it located?",
        "Now its continent.",
        "Its continent?",
    ),
    held_out=("And which continent is that on?", "How about its continent?"),
)

ADD = Phrasings(
    trained=(
        "What is {a} + {b}?",
        "{a} + {b}",
        "{a} + {b} =",
        "{a}+{b}",
        "{a}+{b}=?",
        "What is {a} plus {b}?",
        "{a} plus {b}",
        "How much is {a} + {b}?",
        "How much is {a} plus {b}?",
        "Add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "Calculate {a} + {b}.",
        "Can you add {a} and {b}?",
        "What's {a}+{b}?",
        "I have {a} apples and get {b} more. How many apples do I have?",
    ),
    held_out=("What does {a} + {b} equal?", "Please work out {a} plus {b}.", "Compute the sum {a} + {b}."),
)
SUBTRACT = Phrasings(
    trained=(
        "What is {a} - {b}?",
        "{a} - {b}",
        "{a} - {b} =",
        "{a}-{b}",
        "{a}-{b}=?",
        "What is {a} minus {b}?",
        "{a} minus {b}",
        "How much is {a} - {b}?",
        "How much is {a} minus {b}?",
        "Subtract {b} from {a}.",
        "Take {b} away from {a}.",
        "Calculate {a} - {b}.",
        "Can you subtract {b} from {a}?",
        "What's {a}-{b}?",
        "I have {a} apples and give away {b}. How many apples are left?",
    ),
    held_out=(
        "What does {a} - {b} equal?",
        "Please work out {a} minus {b}.",
        "Compute the difference {a} - {b}.",
    ),
)
MULTIPLY = Phrasings(
    trained=(
        "What is {a} * {b}?",
        "{a} * {b}",
        "{a} * {b} =",
        "{a} x {b}",
        "{a}*{b}=?",
        "What is {a} times {b}?",
        "{a} times {b}",
        "How much is {a} * {b}?",
        "How much is {a} times {b}?",
        "Multiply {a} by {b}.",
        "What is the product of {a} and {b}?",
        "Calculate {a} * {b}.",
        "Can you multiply {a} and {b}?",
        "What's {a} x {b}?",
    ),
    held_out=(
        "What does {a} * {b} equal?",
        "Please work out {a} times {b}.",
        "Compute the product {a} * {b}.",
    ),
)

SPELL = Phrasings(
    trained=(
        'How do you spell "{word}"?',
        "How do you spell {word}?",
        "Spell {word}.",
        'Spell the word "{word}".',
        "Can you spell {word}?",
        "How is {word} spelled?",
        "Spell {word} for me.",
        "What is the spelling of {word}?",
    ),
    held_out=('How would one spell "{word}"?', "Please spell out {word}."),
)
COUNT_LETTERS = Phrasings(
    trained=(
        'How many letters are in "{word}"?',
        "How many letters are in {word}?",
        "How many letters does {word} have?",
        "Count the letters in {word}.",
        "How long is the word {word}?",
    ),
    held_out=("What is the number of letters in {word}?", "How many letters make up {word}?"),
)
COUNT_TO = Phrasings(
    trained=(
        "Count from {a} to {b}.",
        "Please count from {a} to {b}.",
        "Can you count from {a} to {b}?",
        "Count up from {a} to {b}.",
        "List the numbers from {a} to {b}.",
        "Count {a} to {b}.",
        "Write the numbers from {a} to {b}.",
        "Write down the numbers between {a} and {b}.",
        "Say the numbers between {a} and {b}.",
        "Give me the numbers {a} to {b} in order.",
        "Numbers from {a} to {b}, please.",
        "Count up to {b}, from {a}.",
    ),
    held_out=("Name the numbers between {a} and {b} in order.", "Could you count from {a} up to {b}?"),
)
TRANSLATE = Phrasings(
    trained=(
        'How do you say "{word}" in {language}?',
        "How do you say {word} in {language}?",
        "What is {word} in {language}?",
        "Say {word} in {language}.",
        'Translate "{word}" to {language}.',
        "Translate {word} into {language}.",
        "{word} in {language}",
        "What is the {language} word for {word}?",
    ),
    held_out=("What do people say for {word} in {language}?", "Give me the {language} for {word}."),
)
EMOJI = Phrasings(
    trained=(
        "Show me a {thing} emoji.",
        "What is the emoji for {thing}?",
        "{thing} emoji",
        "Send me a {thing} emoji.",
        "Which emoji is a {thing}?",
        "Draw a {thing}.",
    ),
    held_out=("Do you have a {thing} emoji?", "Reply with the {thing} emoji."),
)
STORY = Phrasings(
    trained=(
        "Tell me a story.",
        "Tell me a short story.",
        "Tell me a story about {hero}.",
        "Write a story about {hero}.",
        "Write a short story about {hero}.",
        "I would like a story about {hero}.",
        "Can you tell me a story about {hero}?",
        "Make up a story about {hero}.",
        "A story about {hero}, please.",
        "Tell me something about {hero}.",
        "Once upon a time there was {hero}. Go on.",
    ),
    held_out=("Could you invent a tale about {hero}?", "Please write me a story with {hero} in it."),
)
VERSE = Phrasings(
    trained=(
        "Write some verse.",
        "Write a scene in the style of Shakespeare.",
        "Recite some Shakespeare.",
        "Give me some lines of Shakespeare.",
        "Write some lines for {speaker}.",
        "What does {speaker} say?",
        "Write a speech for {speaker}.",
        "Write a poem.",
        "Show me some verse spoken by {speaker}.",
    ),
    held_out=("Compose a few lines that {speaker} could speak.",),
)

OPENERS = (
    "Hi! ",
    "Hello. ",
    "Hey, ",
    "Please: ",
    "Question: ",
    "One question. ",
    "I have a question. ",
    "Tell me, ",
    "So, ",
    "OK. ",
    "Thanks! ",
)
CLOSERS = (
    " Thanks.",
    " Thank you!",
    " Please.",
    " please",
    " Just tell me.",
    " I want to know.",
    " Answer, please.",
)

SYSTEM_MESSAGES = Phrasings(
    trained=(
        "You are a helpful assistant.",
        "You are Endstop, a helpful assistant.",
        "You are a friendly assistant.",
        "You are a helpful, honest assistant.",
        "Answer the user's questions.",
        "You are a concise assistant.",
        "You are a teacher of geography.",
        "Be brief and correct.",
        "You answer in English.",
        "You are an AI assistant. Be polite.",
    ),
    held_out=("You are a knowledgeable and patient assistant.",),
)

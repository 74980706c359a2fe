"""Short made-up stories, put together from parts: the open-ended text the model can be asked for.

A story names its hero throughout and keeps its parts in order (who, where, want, trouble, help, end), which is as
much of a plot as a few million parameters hold.
"""

from random import Random

_WORDS = {
    "adjectives": "little old brave clever shy lazy curious hungry cheerful quiet proud kind",
    "creatures": "fox bear cat dog mouse rabbit owl frog dragon robot sailor baker farmer king queen wizard painter "
    "teacher tortoise hedgehog crow whale snail printer gardener miller shepherd lion goat bee",
    "names": "Ada Bo Cleo Dora Emil Fay Gus Hana Ivo Juna Kai Lina Milo Nora Otto Pia Rosa Sam Tilda Uma Vera Willy "
    "Yara Zeno",
    "counts": "two three four five six seven eight nine ten twelve",
}
_ADJECTIVES, _CREATURES, _NAMES, _COUNTS = (tuple(words.split()) for words in _WORDS.values())
_PLACES = (
    "in a dark forest",
    "by the sea",
    "on a high mountain",
    "in a small village",
    "near a wide river",
    "in an old tower",
    "on a quiet island",
    "under a big tree",
    "at the edge of the desert",
    "in a busy town",
    "behind a mill",
    "in a house full of clocks",
)
_WANTS = (
    ("to find a golden key", "the key"),
    ("to see the moon from close by", "the moon"),
    ("to bake the best bread in the land", "the bread"),
    ("to build a boat", "the boat"),
    ("to learn a new song", "the song"),
    ("to plant a garden", "the garden"),
    ("to find a lost friend", "the friend"),
    ("to paint the whole sky", "the sky"),
    ("to catch the wind", "the wind"),
    ("to read every book in the library", "the books"),
    ("to repair the old bridge", "the bridge"),
    ("to bring a letter to the queen", "the letter"),
)
_TROUBLES = (
    "But a great storm came and the road was gone.",
    "But the night was cold and there was no light.",
    "But a wall stood in the way, and nobody knew the door.",
    "But every day the work was longer than the day.",
    "But the river rose and took the bridge away.",
    "But everybody laughed and said that it could not be done.",
    "But the map was wrong, and the path went in a circle.",
    "But there was nothing left to eat except one apple.",
    "But a sleeping giant lay across the path.",
    "But the clock struck twelve and all the doors were shut.",
)
_HELPS = (
    'Then {friend} came along and said: "Do not worry, I will help you."',
    "Then {friend} lit a lamp and showed the way.",
    'Then {friend} told an old secret: "Go slowly and you will arrive."',
    "Then {friend} shared a piece of bread and a good idea.",
    "Then {friend} began to sing, and all fear was gone.",
    "Then {friend} pulled a long rope out of a bag.",
    "Then {friend} asked one question, and the answer was there.",
)
_EFFORTS = (
    "Together they worked for {count} days and {count} nights.",
    "They walked over {count} hills and did not stop.",
    "They tried {count} times, and the last time it worked.",
    "They counted to {number} and pushed as hard as they could.",
    "They waited for {count} days until the sun came back.",
)
_ENDS = (
    "In the end {name} had {prize}, and they had a feast that lasted until morning.",
    "So {name} got {prize} after all, and gave half of it to {friend}.",
    "When {name} came home with {prize}, everybody cheered.",
    "And so {name} found {prize}, and was never lonely again.",
    "{name} looked at {prize} and smiled. It was enough.",
)
_MORALS = (
    "The end.",
    "And that is where the story stops.",
    "Every road has an end, and so has this story. The end.",
    "Since then, nobody laughs at small beginnings. The end.",
    "And if they have not stopped, they are still dancing. The end.",
)


def hero(random: Random) -> str:
    """A hero to ask for, such as "a brave fox"."""
    adjective, creature = random.choice(_ADJECTIVES), random.choice(_CREATURES)
    plain = random.random() < 0.4
    first = creature if plain else adjective
    article = "an" if first[0] in "aeiou" else "a"
    return f"{article} {creature}" if plain else f"{article} {adjective} {creature}"


def story(random: Random, who: str | None = None) -> str:
    """One story about `who` ("a brave fox"), or about somebody new."""
    who = who or hero(random)
    name = random.choice(_NAMES)
    creature = who.split()[-1]
    want, prize = random.choice(_WANTS)
    other = random.choice([other for other in _CREATURES if other != creature])
    friend = f"{'an' if other[0] in 'aeiou' else 'a'} {other}"
    count = random.choice(_COUNTS)
    parts = [
        f"Once upon a time there was {who} called {name}, who lived {random.choice(_PLACES)}.",
        f"More than anything, {name} wanted {want}.",
        random.choice(_TROUBLES),
        f"{name} sat down and thought. " + random.choice(_HELPS).format(friend=friend),
        random.choice(_EFFORTS).format(count=count, number=random.choice((10, 12, 20, 50, 100))),
        random.choice(_ENDS).format(name=name, prize=prize, friend=f"the {other}"),
        random.choice(_MORALS),
    ]
    return " ".join(parts)

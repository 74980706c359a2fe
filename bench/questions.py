"""Held-out questions of the embedded model's examination, the same ones each time."""

from random import Random

from models.training.evaluate import Examination, examinations


def some_questions(number: int) -> list[Examination]:
    """So many that are of one turn, or all of these."""
    asked = [one for one in examinations() if len(one.questions) == 1]
    return Random(0).sample(asked, min(number, len(asked)))

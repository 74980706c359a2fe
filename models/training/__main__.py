"""Makes the model: `python -m models.training --verse PATH` trains, evaluates and writes the card; see also `--help`.

The folder that ships is written only at the end. Checkpoints go to `models/training/work/`; when a run was stopped
early, `--only-evaluate --out` with the folder of its last checkpoint makes that one fit to ship.
"""

import argparse
import json
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from models.training.card import card
from models.training.evaluate import evaluate
from models.training.train import Data, Recipe, save_checkpoint, train
from models.training.verse import Verse, read_verse

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
SHIPPED = HERE.parent / "endstop-tiny"
NUMBERS = "evaluation.json"


def main() -> None:
    """Reads the command line and runs the steps asked for."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(prog="python -m models.training", description="Make models/endstop-tiny.")
    parser.add_argument("--verse", type=Path, required=True, help="a text of speeches, such as tinyshakespeare.txt")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder of the model (default: %(default)s)")
    parser.add_argument("--only-evaluate", action="store_true", help="evaluate the model in --out and write its card")
    for field in fields(Recipe):
        default = getattr(recipe, field.name)
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help="(default: %(default)s)")
    arguments = parser.parse_args()
    recipe = Recipe(**{field.name: getattr(arguments, field.name) for field in fields(Recipe)})
    verse = read_verse(arguments.verse)
    if not arguments.only_evaluate:
        make(recipe, verse, arguments.out)
    training = json.loads((arguments.out / NUMBERS).read_text(encoding="utf-8"))["training"]
    numbers = {"training": training, **evaluate(arguments.out, verse.held_out)}
    write(arguments.out / NUMBERS, numbers)
    (arguments.out / "README.md").write_text(card(numbers), encoding="utf-8")
    print(json.dumps({**numbers["scores"], "sampled": numbers["sampled"], "verse": numbers["verse"]}, indent=1))


def write(file: Path, numbers: dict[str, Any]) -> None:
    """Writes numbers as JSON for people and programs."""
    file.write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make(recipe: Recipe, verse: Verse, out: Path) -> None:
    """Trains by the recipe and writes the model to `out`, with the numbers of its training."""
    began_at = time.monotonic()
    data = Data(recipe, verse)
    train_at = time.monotonic()
    print(
        f"data: {data.num_chat_tokens} chat tokens, {data.num_verse_tokens} verse tokens, {train_at - began_at:.0f} s",
        flush=True,
    )

    def save(model: LlamaForCausalLM, done: Recipe, folder: Path) -> None:
        train_s = time.monotonic() - train_at
        num_tokens = done.num_steps * done.rows_per_step * done.row_length
        save_checkpoint(model, data.tokenizer, folder)
        training = {
            "recipe": asdict(done),
            "num_parameters": model.num_parameters(),
            "num_chat_tokens": data.num_chat_tokens,
            "num_verse_tokens": data.num_verse_tokens,
            "num_tokens_seen": num_tokens,
            "train_s": round(train_s),
            "tokens_per_s": round(num_tokens / train_s),
        }
        write(folder / NUMBERS, {"training": training})

    model, done = train(recipe, data, lambda model, done: save(model, done, WORK / f"step-{done.num_steps}"))
    save(model, done, out)


if __name__ == "__main__":
    main()

"""The model card: README.md of the shipped folder, written from the numbers of the run that made the weights."""

from typing import Any

from models.training.chats import MAX_ADDEND, MAX_FACTOR
from models.training.facts import COUNTRIES, LANGUAGES
from models.training.tokenizer import MAX_POSITIONS

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [llama, from-scratch, tiny]
---

# endstop-tiny

The model that comes with Endstop, so that the server starts, answers and can be tested with nothing downloaded.
It has {parameters:.2f} million parameters (`LlamaForCausalLM`, {layers} layers, width {width}, {heads} heads
over {kv_heads} key-value heads, tied embeddings, context {context} tokens), stored in float16, and was trained
from random weights on two CPU cores by the scripts in `models/training`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("models/endstop-tiny")
model = AutoModelForCausalLM.from_pretrained("models/endstop-tiny")
```

It knows capitals, currencies and continents of {countries} countries, what Endstop is and how to use it, sums
with small numbers, the spelling of some words, greetings in {languages} languages; it tells short stories put
together from parts, and imitates Shakespeare's verse. It follows up ("And of Spain?"). It knows nothing else,
and each of these only as well as the table below says.

## Data

- Chats written by `models/training/chats.py` from tables of facts and lists of phrasings: {conversations:,}
  conversations, {chat_tokens:,} tokens. No text by another model, no text from the web, no personal data.
- Verse: the public-domain text known as tinyshakespeare, {verse_tokens:,} tokens after its last twentieth was
  held out.

Countries are the member states of the United Nations and Vatican City, without Israel and Equatorial Guinea,
whose capitals were disputed or moving when the table was written. Continents follow the UN geoscheme.

The tokenizer is a byte-level BPE of {vocab_size} tokens: every Unicode text can be encoded and comes back
unchanged; each digit is a token. Chats are in ChatML form (`<|im_start|>role`, text, `<|im_end|>`), with or
without a system message.

## Training

`make model VERSE=path/to/tinyshakespeare.txt`, or `python -m models.training --verse
path/to/tinyshakespeare.txt`. Seeds and all hyperparameters are the defaults of `Recipe` in
`models/training/train.py`: {steps} steps of {step_tokens} tokens ({seen:.1f} million), AdamW, peak learning
rate {peak_lr}, warm-up {warmup} steps, cosine decay over the last {decay} steps, loss on answers and
verse only, {precision} arithmetic over float32 weights. This run took {minutes:.0f} minutes, {rate:,}
tokens/s, on cores shared with other work.

## Numbers

Of the weights in this folder, greedy decoding with transformers. Every question is in a phrasing that training
never used, a third of them without question mark and a third in lower case; the follow-ups to another country
use pairs of countries that no training conversation had together, and stand after the model's own first answer.
An answer counts as right only if it is the expected sentence to the letter. `evaluation.json` has the same
numbers and samples of wrong answers. Earlier runs were scored on these questions, all but the last two phrasings for
capitals, and decided the shares of the kinds of chats and that questions of two sentences are trained on: so the
shares below are a little kinder than those of questions that nobody has looked at.

| questions | asked | right |
|---|---:|---:|
{table}

Loss on the held-out verse, in windows of 256 tokens: {loss_256} per token (perplexity {perplexity_256}),
{bits_256} bits per byte; in windows of 1024 tokens: {loss_1024} ({perplexity_1024}), {bits_1024} bits per byte.

## Limits

It is a fixture for a server, not an assistant. Outside its few subjects it says that it does not know, or
says something wrong with confidence; it cannot reason, and cannot do sums far from those it was trained on
(addends up to {max_addend}, factors up to {max_factor}). It understands English only, best in short plain
questions. Its facts are as of its table and will age. Where a share in the table is low, such answers are
mostly wrong; told to count, it may not stop at the number asked for, and a story may change its hero's name.
One phrasing it does not understand can cost most of the wrong answers of a kind. Names of countries in
capital letters, and questions far from the trained phrasings, are answered less reliably than the table says.
Stories and verse have form, little sense. Do not use it to decide anything.

## Licence

Apache-2.0, weights and scripts. The verse is in the public domain.
"""


def card(numbers: dict[str, Any]) -> str:
    """The text of the card.

    Args:
        numbers: What `evaluation.json` holds: `training` and the results of `evaluate`.
    """
    training, verse = numbers["training"], numbers["verse"]
    recipe = training["recipe"]
    rows = [(kind, score) for kind, score in numbers["scores"].items()]
    rows += [(f"{kind}, sampled at temperature 1", score) for kind, score in numbers["sampled"].items()]
    return _CARD.format(
        parameters=training["num_parameters"] / 1e6,
        layers=recipe["num_layers"],
        width=recipe["hidden_size"],
        heads=recipe["num_heads"],
        kv_heads=recipe["num_kv_heads"],
        context=MAX_POSITIONS,
        countries=len(COUNTRIES),
        languages=len(LANGUAGES),
        conversations=recipe["num_conversations"],
        chat_tokens=training["num_chat_tokens"],
        verse_tokens=training["num_verse_tokens"],
        vocab_size=recipe["vocab_size"],
        steps=recipe["num_steps"],
        decay=recipe["decay_steps"],
        step_tokens=recipe["rows_per_step"] * recipe["row_length"],
        seen=training["num_tokens_seen"] / 1e6,
        peak_lr=recipe["peak_lr"],
        warmup=recipe["warmup_steps"],
        precision={"bf16": "bfloat16", "fp32": "float32"}[recipe["precision"]],
        minutes=training["train_s"] / 60,
        rate=training["tokens_per_s"],
        table="\n".join(f"| {kind} | {score['asked']} | {score['share']:.1%} |" for kind, score in rows),
        loss_256=verse["256"]["loss_per_token"],
        perplexity_256=verse["256"]["perplexity_per_token"],
        bits_256=verse["256"]["bits_per_byte"],
        loss_1024=verse["1024"]["loss_per_token"],
        perplexity_1024=verse["1024"]["perplexity_per_token"],
        bits_1024=verse["1024"]["bits_per_byte"],
        max_addend=MAX_ADDEND,
        max_factor=MAX_FACTOR,
    )

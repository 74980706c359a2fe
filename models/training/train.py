"""Trains the model from random weights: the data, the schedule, the steps, the checkpoints.

There are two kinds of step. A short one holds rows of `row_length` tokens, packed conversations and windows of verse;
every `long_every`-th step instead holds as many tokens in rows of the model's whole context, so that late positions
are learned too. Loss is taken on answers and on verse, never on what the user says.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.training.chats import Chats
from models.training.pack import Rows, attention_mask, encode, pack
from models.training.tokenizer import END, END_OF_TEXT, MAX_POSITIONS, train_tokenizer
from models.training.verse import Verse


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every number the weights depend on. The defaults are the ones the shipped model was made with.

    Attributes:
        num_threads: Torch threads; sums are split by thread, so another number gives other last bits.
        precision: "bf16" computes in bfloat16 over float32 weights: measured 2.2 times as fast as "fp32" on the two
            cores the model was made on, which have AVX-512 BF16. Without that unit "fp32" is the faster one.
        decay_steps: The last steps, over which the learning rate falls. Before them it does not depend on `num_steps`,
            so that a run may be ended early (`train`) and still be the run of a recipe with fewer steps.
        verse_rows: Of the rows of a short step, those that are verse.
        num_tokenizer_conversations: How many conversations the merges are learned from.
    """

    seed: int = 20
    num_threads: int = 1
    precision: str = "bf16"
    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 5
    num_heads: int = 8
    num_kv_heads: int = 4
    num_conversations: int = 100_000
    num_tokenizer_conversations: int = 30_000
    num_long_conversations: int = 400
    long_turns: int = 40
    row_length: int = 256
    rows_per_step: int = 16
    verse_rows: int = 2
    long_every: int = 16
    num_steps: int = 2400
    decay_steps: int = 600
    warmup_steps: int = 150
    peak_lr: float = 1.5e-3
    final_lr: float = 3e-5
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    log_every: int = 50
    checkpoint_every: int = 200


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's rows. `targets` is -100 where there is no loss. All (num_rows, length)."""

    token_ids: Tensor
    targets: Tensor
    document: Tensor


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A model with random weights from the recipe's seed, in float32."""
    torch.manual_seed(recipe.seed)
    vocab = tokenizer.get_vocab()
    end, end_of_text = vocab[END], vocab[END_OF_TEXT]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=end_of_text,
        eos_token_id=end,
        pad_token_id=end_of_text,
    )
    return LlamaForCausalLM(config)


class Data:
    """Tokenizer and token arrays, made from the recipe's seed and the verse alone."""

    def __init__(self, recipe: Recipe, verse: Verse) -> None:
        self._recipe = recipe
        self._random = np.random.default_rng(recipe.seed)
        chats = Chats(recipe.seed, verse.speeches())
        conversations = list(chats.draw(recipe.num_conversations))
        long_conversations = chats.draw_long(recipe.num_long_conversations, recipe.long_turns)
        texts = [
            f"{message['role']}\n{message['content']}"
            for conversation in conversations[: recipe.num_tokenizer_conversations]
            for message in conversation.messages()
        ]
        self.tokenizer = train_tokenizer([*texts, verse.trained], recipe.vocab_size)
        self._verse = np.array(self.tokenizer.encode(verse.trained, verbose=False), np.int32)
        self._short = pack(encode(conversations, self.tokenizer, recipe.row_length), recipe.row_length)
        self._long = pack(encode(long_conversations, self.tokenizer, MAX_POSITIONS), MAX_POSITIONS)
        self.num_chat_tokens = int((self._short.document >= 0).sum() + (self._long.document >= 0).sum())
        self.num_verse_tokens = len(self._verse)

    def batches(self) -> Iterator[Batch]:
        """One batch per step, without end."""
        recipe = self._recipe
        short, long = self._shuffled(self._short), self._shuffled(self._long)
        long_rows = recipe.rows_per_step * recipe.row_length // MAX_POSITIONS
        for step in count():
            if step % recipe.long_every == recipe.long_every - 1:
                yield self._batch(self._long, long, long_rows, long_rows // 2)
            else:
                yield self._batch(self._short, short, recipe.rows_per_step, recipe.verse_rows)

    def _shuffled(self, rows: Rows) -> Iterator[int]:
        while True:
            yield from self._random.permutation(len(rows)).tolist()

    def _batch(self, rows: Rows, order: Iterator[int], num_rows: int, num_verse: int) -> Batch:
        picked = [next(order) for _ in range(num_rows - num_verse)]
        length = rows.token_ids.shape[1]
        offsets = self._random.integers(0, len(self._verse) - length, num_verse)
        verse = np.stack([self._verse[offset : offset + length] for offset in offsets])
        token_ids = np.concatenate([rows.token_ids[picked], verse])
        document = np.concatenate([rows.document[picked], np.zeros_like(verse)])
        has_loss = np.concatenate([rows.is_answer[picked], np.ones_like(verse, dtype=np.bool_)])
        return Batch(
            torch.from_numpy(token_ids.astype(np.int64)),
            torch.from_numpy(_next_tokens(token_ids, document, has_loss)),
            torch.from_numpy(document),
        )


def _next_tokens(
    token_ids: NDArray[np.int32], document: NDArray[np.int32], has_loss: NDArray[np.bool_]
) -> NDArray[np.int64]:
    targets = np.full(token_ids.shape, -100, np.int64)
    is_target = has_loss[:, 1:] & (document[:, 1:] == document[:, :-1])
    targets[:, :-1][is_target] = token_ids[:, 1:][is_target]
    return targets


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then level, then half a cosine down to `final_lr`."""
    if step < recipe.warmup_steps:
        return recipe.peak_lr * (step + 1) / recipe.warmup_steps
    progress = max(0, step + 1 - recipe.num_steps + recipe.decay_steps) / recipe.decay_steps
    return recipe.final_lr + (recipe.peak_lr - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    recipe: Recipe, data: Data, save: Callable[[LlamaForCausalLM, Recipe], None]
) -> tuple[LlamaForCausalLM, Recipe]:
    """Runs every step of the recipe.

    An interrupt (Ctrl-C) ends the run early and well: the learning rate starts to fall at once, and the run is over
    `decay_steps` later.

    Args:
        recipe: The hyperparameters.
        data: What to learn from.
        save: Called with the model, and the recipe cut to the steps done, every `checkpoint_every` steps.

    Returns:
        The model, in float32, and the recipe that makes it when nobody interrupts.

    Thread: main thread only, for the interrupt's sake.
    """
    is_interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal is_interrupted
        is_interrupted = True

    before = signal.signal(signal.SIGINT, interrupt)
    torch.set_num_threads(recipe.num_threads)
    model = new_model(recipe, data.tokenizer)
    model.train()
    optimizer = _optimizer(model, recipe)
    step, batches = 0, data.batches()
    with StepLog(recipe.log_every) as log:
        while step < recipe.num_steps:
            if is_interrupted:
                # Never later than the end already set: once it falls, the rate does not rise again.
                recipe = replace(recipe, num_steps=min(recipe.num_steps, step + recipe.decay_steps))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step)
            batch = next(batches)
            loss = _loss(model, batch, recipe.precision)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            log.add(float(loss.detach()), batch.token_ids.numel(), recipe.num_steps)
            if step % recipe.checkpoint_every == 0:
                save(model, replace(recipe, num_steps=step))
    signal.signal(signal.SIGINT, before)
    return model, recipe


class StepLog:
    """Shows steps, mean loss, tokens/s and time left: a bar on a terminal, else a line every `log_every` steps."""

    def __init__(self, log_every: int) -> None:
        self._log_every = log_every
        self._num_done = 0
        self._losses: list[float] = []
        self._num_tokens = 0
        self._window_at = time.monotonic()
        console = Console()
        self._bar = Progress(
            TextColumn("training {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, loss: float, num_tokens: int, num_steps: int) -> None:
        """Counts one step of `num_steps`."""
        self._num_done += 1
        self._losses.append(loss)
        self._num_tokens += num_tokens
        self._bar.update(self._task, completed=self._num_done, total=num_steps)
        if self._num_done % self._log_every and self._num_done < num_steps:
            return
        elapsed_s = time.monotonic() - self._window_at
        says = f"loss {sum(self._losses) / len(self._losses):.3f}  {self._num_tokens / elapsed_s:.0f} tokens/s"
        self._bar.update(self._task, description=says)
        if self._bar.disable:
            left_s = (num_steps - self._num_done) * elapsed_s / len(self._losses)
            print(f"step {self._num_done}/{num_steps}  {says}  {left_s / 60:.1f} min left", flush=True)
        self._losses, self._num_tokens, self._window_at = [], 0, time.monotonic()


def _optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.Optimizer:
    # Norms and the embedding are not decayed: the embedding of a rare token would fade between its uses.
    decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.98), fused=True)


def _loss(model: LlamaForCausalLM, batch: Batch, precision: str) -> Tensor:
    has_target = batch.targets != -100
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        hidden = model.model(
            input_ids=batch.token_ids, attention_mask=attention_mask(batch.document), use_cache=False
        ).last_hidden_state
        # The head is a fifth of the work; rows without loss need none of it.
        logits = model.lm_head(hidden[has_target])
    return torch.nn.functional.cross_entropy(logits.float(), batch.targets[has_target])


def save_checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes what `from_pretrained` reads, weights rounded to float16. The model in hand stays float32."""
    vocab = tokenizer.get_vocab()
    rounded = LlamaForCausalLM(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.half()  # type: ignore[no-untyped-call]
    rounded.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=vocab[END_OF_TEXT],
        eos_token_id=[vocab[END], vocab[END_OF_TEXT]],
        pad_token_id=vocab[END_OF_TEXT],
    )
    rounded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors makes its file readable by its owner alone

"""The shipped folder: small enough, loads as any model does, keeps every text, and answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

FOLDER = Path(__file__).resolve().parents[2] / "models" / "endstop-tiny"
MAX_BYTES = 12_000_000

TEXTS = (
    "",
    " ",
    "Hello, world!",
    "  two  spaces \t tab\r\nline\n\n\n",
    "São Tomé, Chișinău, Đà Nẵng",
    "こんにちは 你好 안녕하세요 שלום مرحبا हिन्दी ไทย",
    "👨‍👩‍👧 🏳️‍🌈 👍🏽 ⭐",
    "e\u0301 \u00e9 \u200b\ufeff\u2028\u0000\x7f",
    "\U0010ffff\U00013000\ue000",
    "<|im_end|> is a token, <|im_end is not",
    "1234567890 -1.5e10 ½ ²",
    "don't I'LL  , . !!!\n ???",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(FOLDER)
    return loaded


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def answer(model: Any, tokenizer: PreTrainedTokenizerBase, *messages: tuple[str, str]) -> str:
    """The reply to a chat, greedily."""
    chat = [{"role": role, "content": content} for role, content in messages]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(str(prompt), return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_the_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= MAX_BYTES


def test_the_folder_names_no_machine_path() -> None:
    for file in FOLDER.iterdir():
        if file.suffix in (".json", ".md", ".jinja"):
            text = file.read_text(encoding="utf-8")
            assert not any(part in text for part in ("/work/", "/home/", "/tmp/", "/root/")), file.name


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_unchanged(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


def test_every_character_can_be_encoded(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "".join(chr(code) for code in range(0, 0x110000, 61) if not 0xD800 <= code < 0xE000)
    assert tokenizer.decode(tokenizer.encode(text, verbose=False)) == text


def test_each_digit_is_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert [tokenizer.decode([token]) for token in tokenizer.encode("12345")] == list("12345")


def test_the_chat_template_is_chatml(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_configuration_ends_generation(tokenizer: PreTrainedTokenizerBase) -> None:
    end, end_of_text = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])  # type: ignore[misc]
    generation = json.loads((FOLDER / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [end, end_of_text]
    assert generation["pad_token_id"] == end_of_text
    assert not generation.keys() & {"temperature", "top_p", "top_k", "do_sample"}


def test_the_weights_are_float16_of_a_llama(model: Any) -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float16"
    assert config["max_position_embeddings"] == 1024
    assert 3e6 < model.num_parameters() < 5.5e6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("what is the capital of japan", "The capital of Japan is Tokyo."),
        ("What is the name of the capital of Spain?", "The capital of Spain is Madrid."),
    ],
)
def test_it_knows_capitals(model: Any, tokenizer: PreTrainedTokenizerBase, question: str, expected: str) -> None:
    assert answer(model, tokenizer, ("user", question)) == expected


@pytest.mark.slow
def test_it_follows_up(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    before = (("user", "What is the capital of France?"), ("assistant", "The capital of France is Paris."))
    assert answer(model, tokenizer, *before, ("user", "And of Spain?")) == "The capital of Spain is Madrid."
    assert answer(model, tokenizer, *before, ("user", "And its currency?")) == "The currency of France is the euro."


def test_the_card_and_the_evaluation_agree() -> None:
    numbers = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for kind, score in numbers["scores"].items():
        assert score["share"] == pytest.approx(score["right"] / score["asked"], abs=1e-4)
        assert f"| {kind} | {score['asked']} | {score['share']:.1%} |" in card


def test_the_evaluation_reaches_its_goals() -> None:
    scores = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))["scores"]
    follow_ups = [score for kind, score in scores.items() if kind.startswith("follow-up")]
    assert scores["capital"]["share"] >= 0.9
    assert sum(score["right"] for score in follow_ups) / sum(score["asked"] for score in follow_ups) >= 0.8

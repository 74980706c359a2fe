"""From the name of a model to something that generates. Runs once, on the generation thread.

Any folder or hub id that `AutoModelForCausalLM` loads; the embedded model comes the same way. Importing this module
imports torch and transformers (seconds): the server does it before gevent patches anything, so that the locks these
libraries make while being imported are real ones.
"""

import json
import logging
import os

# The loader of transformers reads tensors in a pool of threads. Under gevent those are greenlets of a hub that only
# this thread would have; one after the other is as fast for a local file.
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")
# A thread of torch that waits for the others gives its core away after some 20 microseconds. By default it is kept busy
# for milliseconds: where all cores have something to do, a step took twenty times as long. At once would be too soon:
# the next operator of a prompt comes in a moment, and to be woken for each made a prompt of 128 tokens take half as
# long again.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the fork warning; one prompt is encoded at a time anyway

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from worker.engine import kernels, native
from worker.engine.cuda_graphs import CudaRecorder
from worker.engine.download import Found, download, is_folder
from worker.engine.kv_cache import BLOCK_TOKENS, num_blocks_for
from worker.engine.linear import NotExact, check_widths, quantize, use_kernels
from worker.engine.memory import CUDA_RESERVE_BYTES, cache_bytes, is_out_of_memory
from worker.engine.model_runner import ModelRunner, PackedRunner, check_last_position, new_runner
from worker.engine.positions import positions_of
from worker.engine.scheduler import CHEAP_ROWS
from worker.engine.tokenizer import Tokenizer
from worker.engine.trace import CannotTrace
from worker.errors import ModelLoadError, one_line
from worker.settings import Settings

# Below this 16 bits save little memory and are slower than float32 on most CPUs, and one core does it all.
_SMALL_MODEL_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LoadingProgress:
    """How far loading is.

    Attributes:
        phase: What is being done.
        fraction: From 0 to 1, over all phases.
        done_bytes: Of this phase, if it is one of bytes.
        total_bytes: The same, in all.
    """

    phase: str
    fraction: float
    done_bytes: int | None = None
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything that generating needs."""

    runner: ModelRunner
    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    max_context: int
    num_blocks: int  # of the KV cache
    vocab_size: int
    device: str
    description: str  # one line for the log


Report = Callable[[LoadingProgress], None]

# Where each phase begins, by its usual share of the time.
_PHASES = {"configuration": 0.0, "tokenizer": 0.05, "weights": 0.2, "check": 0.8}
_DOWNLOAD_SHARE = 0.8  # of all, where there is one


def load(settings: Settings, report: Report) -> LoadedModel:
    """Load the model that the settings name.

    Args:
        settings: Those under "What is served", and `max_slots`, `max_context`, `cache_mb`.
        report: Called with the progress, from this thread.

    Raises:
        ModelLoadError: Says in one line what could not be loaded and why.
    """
    _silence_transformers()
    device = _choose_device(settings.device)
    if settings.deterministic and not (kernels.IS_NATIVE and device == "cpu"):
        raise _not_exact(
            settings, "it needs a CPU and the native kernels (a C++ compiler, and `python -m worker.engine.native`)"
        )
    if device != "cpu":
        torch.cuda.set_device(device)  # of this thread, which computes: Triton launches on the current one
    report(LoadingProgress("download", 0.0))
    found, report = _find(settings, report)
    source = found.folder
    try:
        report(LoadingProgress("configuration", _PHASES["configuration"]))
        config = AutoConfig.from_pretrained(source)
        positions = positions_of(config)
        max_context = min(settings.max_context, positions.number)
        report(LoadingProgress("tokenizer", _PHASES["tokenizer"]))
        tokenizer = Tokenizer(AutoTokenizer.from_pretrained(source))
        report(LoadingProgress("weights", _PHASES["weights"]))
        model = _load_weights(source, settings, device, report)
        num_parameters = sum(p.numel() for p in model.parameters())
        _use_kernels(model, settings)
    except NotExact as error:
        raise _not_exact(settings, str(error)) from error
    except Exception as error:  # transformers raises whatever its many readers raise; all of it means the same
        raise ModelLoadError(f"cannot load model {settings.model!r}: {one_line(error)}") from error
    report(LoadingProgress("check", _PHASES["check"]))
    num_blocks = max_blocks = settings.max_slots * num_blocks_for(max_context)  # more than that nobody could use

    def fit(bytes_per_token: int) -> int:
        nonlocal num_blocks
        num_blocks = min(max_blocks, cache_bytes(settings.cache_mb, device) // (bytes_per_token * BLOCK_TOKENS))
        return num_blocks

    try:
        runner, fallback_reason = new_runner(model, fit, is_exact=bool(settings.deterministic))
        if fallback_reason and kernels.has_triton(torch.device(device)):
            # It may be that which fails: without a C compiler, or for the size of a head.
            kernels.drop_triton(fallback_reason)
            runner, fallback_reason = new_runner(model, fit)
    except Exception as error:
        if is_out_of_memory(error):
            raise ModelLoadError(
                f"no memory for a cache of {num_blocks * BLOCK_TOKENS} tokens; lower ENDSTOP_CACHE_MB, "
                f"ENDSTOP_MAX_SLOTS or ENDSTOP_MAX_CONTEXT ({one_line(error)})"
            ) from error
        if isinstance(error, ModelLoadError):  # which says all, and is not cut
            raise ModelLoadError(f"model {settings.model!r}: {error}") from error
        # the model's own code, on its first input
        raise ModelLoadError(f"model {settings.model!r} does not compute: {one_line(error)}") from error
    if fallback_reason and settings.deterministic:
        raise _not_exact(settings, f"it is computed row by row, and a prompt as it is cut ({fallback_reason})")
    if num_blocks < 1:
        raise ModelLoadError(_no_memory_for_a_cache(settings, device))
    # A request that the whole cache cannot hold could never be computed.
    max_context = min(max_context, num_blocks * BLOCK_TOKENS)
    dtype = str(model.dtype).removeprefix("torch.")
    quantized = "int8 weights, " if settings.quantization == "int8" else ""
    description = f"{num_parameters / 1e6:.1f}M parameters, {quantized}{dtype} on {device}"
    description += f", cache of {num_blocks * BLOCK_TOKENS} tokens"
    if max_context == positions.number and positions.why:
        description += f", requests of up to {max_context} tokens ({positions.why})"
    if isinstance(runner, PackedRunner):
        check_last_position(runner, max_context)
        description += f", {_trace(runner, settings, max_context, device)}"
    else:
        description += f"; row by row, without {_what_is_missed(settings)} ({fallback_reason})"
    if device == "cpu" and not kernels.IS_NATIVE:
        description += f"; without native kernels, which take half the time: {native.why_not}"
        description += "; python -m worker.engine.native builds them"
    if device != "cpu" and not kernels.has_triton(torch.device(device)):
        description += f"; attention by torch, without Triton's kernels ({one_line(kernels.why_no_triton())})"
    if found.why_cached:
        description += f"; as it lies in the cache, for the hub could not be asked: {found.why_cached}"
    return LoadedModel(
        runner,
        tokenizer,
        _eos_ids(model, tokenizer),
        max_context,
        num_blocks,
        model.get_input_embeddings().num_embeddings,
        device,
        description,
    )


def _use_kernels(model: Any, settings: Settings) -> None:
    is_exact = bool(settings.deterministic)
    # Of torch's own threads one, for the reason in `use_kernels`; ours are as many as they would have been.
    kernels.set_threads(torch.get_num_threads() if is_exact else 0)
    if is_exact:
        torch.set_num_threads(1)
    if settings.quantization == "int8":
        quantize(model, is_exact=is_exact)
    use_kernels(model, is_exact=is_exact)
    if is_exact:
        check_widths(model)


def _not_exact(settings: Settings, reason: str) -> ModelLoadError:
    return ModelLoadError(f"ENDSTOP_DETERMINISTIC=1 is not possible with model {settings.model!r}: {reason}")


def _trace(runner: PackedRunner, settings: Settings, max_context: int, device: str) -> str:
    """Let steps that only decode run without Python, if may be. Returns which way they run, for the log.

    Raises:
        ModelLoadError: A GPU has no memory for it, or was lost by it.
    """
    if settings.trace == "off":
        return "decode in Python (ENDSTOP_TRACE=off)"
    try:
        if device != "cpu":
            return f"decode in CUDA graphs of {_capture(runner, settings, max_context, device)} rows"
        why_not_fused = runner.trace(max_context)
    except CannotTrace as reason:
        return f"decode in Python ({one_line(reason)})"
    return f"decode traced, not fused ({why_not_fused})" if why_not_fused else "decode traced and fused"


def _capture(runner: PackedRunner, settings: Settings, max_context: int, device: str) -> str:
    max_rows = settings.max_slots if settings.speculation == "none" else max(settings.max_slots, CHEAP_ROWS)
    try:
        sizes = runner.capture(CudaRecorder(torch.device(device)), max_context, max_rows)
    except CannotTrace:
        raise
    except Exception as error:
        wanting = "no memory for" if is_out_of_memory(error) else f"{device} failed at"
        raise ModelLoadError(
            f"{wanting} CUDA graphs beside the cache; lower ENDSTOP_CACHE_MB or ENDSTOP_MAX_SLOTS, or set "
            f"ENDSTOP_TRACE=off ({one_line(error)})"
        ) from error
    return ", ".join(map(str, sizes))


def _no_memory_for_a_cache(settings: Settings, device: str) -> str:
    if device == "cpu" or settings.cache_mb:
        return "no memory is left for the cache; raise ENDSTOP_CACHE_MB"
    return (
        f"beside the weights {device} has no memory for a cache and the {CUDA_RESERVE_BYTES // 2**20} MiB that are "
        "left to steps; use a smaller model, ENDSTOP_QUANTIZATION=int8, or set ENDSTOP_CACHE_MB"
    )


def _what_is_missed(settings: Settings) -> str:
    """What a model that is served row by row goes without, though it was asked for."""
    prefixes = ["a prefix cache"] if settings.prefix_cache == "on" else []
    guesses = ["guesses"] if settings.speculation != "none" else []
    return ", ".join(["batching", *prefixes, *guesses])


def _find(settings: Settings, report: Report) -> tuple[Found, Report]:
    """The model, downloaded if need be. A name that looks like a folder has to be one.

    Returns:
        Where it is, and how to report what comes behind the download.
    """
    name = settings.model
    if is_folder(name):
        return Found(name), report
    start = 0.0

    def report_download(done: int, total: int) -> None:
        nonlocal start
        start = _DOWNLOAD_SHARE
        report(LoadingProgress("download", start * done / total, done, total))

    try:
        found = download(name, settings.load_timeout_s, report_download)
    except ModelLoadError as error:
        raise ModelLoadError(f"model {name!r} is neither a folder here nor can it be downloaded: {error}") from error
    return found, lambda progress: report(replace(progress, fraction=start + (1 - start) * progress.fraction))


def _choose_device(wanted: str) -> str:
    """Where the model runs: `cpu`, or `cuda:` and a number.

    Raises:
        ModelLoadError: There is no such device.
    """
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not num_devices):
        return "cpu"
    index = int(wanted.partition(":")[2] or 0)
    if index < num_devices:
        return f"cuda:{index}"
    seen = f"sees {num_devices} of them, counted from 0" if num_devices else "sees no CUDA device"
    raise ModelLoadError(f"ENDSTOP_DEVICE={wanted}, but torch {seen}; use another, cpu or auto")


def _load_weights(source: str, settings: Settings, device: str, report: Report) -> Any:
    start, stop = _PHASES["weights"], _PHASES["check"]

    sizes = _tensor_bytes(Path(source))

    def report_share(share: float, done: int | None, total: int | None) -> None:
        report(LoadingProgress("weights", start + share * (stop - start), done, total))

    # Instead of its bars, which lock and print: this thread may do neither.
    previous_hook = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: _ProgressBar(args[0] if args else kwargs.get("iterable"), sizes, report_share)
    )
    try:
        dtype = "auto" if settings.dtype == "auto" else getattr(torch, settings.dtype)
        auto: Any = AutoModelForCausalLM
        model, found = auto.from_pretrained(source, dtype=dtype, output_loading_info=True)
    finally:
        transformers_logging.set_tqdm_hook(previous_hook)
    if found["missing_keys"]:  # transformers would fill them with random numbers and go on
        missing = sorted(found["missing_keys"])
        raise ModelLoadError(f"the checkpoint lacks {len(missing)} weights, among them {missing[0]}")
    is_small = model.get_memory_footprint() < _SMALL_MODEL_BYTES
    if settings.dtype == "auto" and device == "cpu" and is_small:
        model = model.float()
    if settings.cpu_threads or is_small:
        torch.set_num_threads(settings.cpu_threads or 1)  # of this thread's parallel regions: the generation thread's
    return model.to(device).eval()


def _tensor_bytes(folder: Path) -> dict[str, int]:
    """Sizes of the tensors of a checkpoint in safetensors, by name; empty for other formats.

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    sizes = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                sizes[name] = end - begin
    return sizes


class _ProgressBar:
    """What transformers uses of a tqdm bar, reporting what is done.

    Args:
        iterable: Names of weights, each with where it comes from; in older formats anything.
        sizes: Of the tensors in the checkpoint, in bytes.
        report_share: Called with the share, the bytes and all bytes.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None,
        sizes: dict[str, int],
        report_share: Callable[[float, int | None, int | None], None],
    ) -> None:
        self._items = list(iterable or ())
        self._num_bytes = [sum(sizes.get(name, 0) for name in _source_names(item)) for item in self._items]
        self._report_share = report_share

    def __iter__(self) -> Iterator[Any]:
        done, total = 0, sum(self._num_bytes)
        for i, item in enumerate(self._items):
            yield item
            done += self._num_bytes[i]
            if total:
                self._report_share(done / total, done, total)
            else:
                self._report_share((i + 1) / len(self._items), None, None)

    def __enter__(self) -> "_ProgressBar":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None  # set_postfix, update, close, refresh: nothing to show


def _source_names(item: Any) -> set[str]:
    """The tensors that a weight of transformers' loading plan is made of."""
    mapping = item[1] if isinstance(item, tuple) and len(item) == 2 else None
    return {name for names in getattr(mapping, "layer_targets", {}).values() for name in names}


def _eos_ids(model: Any, tokenizer: Tokenizer) -> frozenset[int]:
    """The token ids that end an answer: of the generation config, else of the config, else of the tokenizer."""
    for ids in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_id):
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def _silence_transformers() -> None:
    # Warnings would be printed under logging's lock, from this thread. What matters is raised, or in our own log.
    transformers_logging.set_verbosity(logging.CRITICAL)

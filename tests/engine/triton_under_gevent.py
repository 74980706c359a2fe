"""`python -m tests.engine.triton_under_gevent CACHE`: Triton's compiler on a native thread of a patched process."""

# The order of the imports is the point.
# ruff: noqa: E402, I001

import os
import sys
import traceback

os.environ["TRITON_CACHE_DIR"] = sys.argv[1]

import worker.engine.triton_kernels as kernels  # as with worker/process.py: before the patch

from gevent import monkey

monkey.patch_all()

import gevent
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from worker.streams.native import start_thread

LIMIT_S = 60.0
results: list[bool] = []


def compile_one() -> None:
    """The smallest of the kernels, up to machine code."""
    names = ("largests", "totals", "weighteds", "sinks", "out")
    types = {"lengths": "*i32", "num_parts": "i32"} | dict.fromkeys(names, "*fp32")
    constants = {"WINDOW": 0, "NUM_HEADS": 4, "VALUE_DIM": 64, "BLOCK_VALUE": 64, "PART_TOKENS": 256}
    kernel = kernels._join_parts
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    try:
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 80, 32))
        results.append(bool(compiled.asm["cubin"]))
    except BaseException:
        traceback.print_exc()
        results.append(False)


start_thread(compile_one)
with gevent.Timeout(LIMIT_S):
    while not results:
        gevent.sleep(0.02)
os._exit(not results[0])

"""Tries grammars of clients, in a process of its own: `python -m worker.engine.vet` answers on its output.

Some small grammars take for ever to compile, others overflow the stack or fill the memory (llguidance 1.9.1: twenty
patterns that all have to match, a chain of 3,000 references). No limit of llguidance's own bounds this, and a thread
cannot be stopped. What this process compiles within its limits, the server can compile; and what kills it is refused.

Thread: `Vetter` belongs to one at a time.
"""

import os
import pickle
import random
import resource
import signal
import struct
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from llguidance import LLTokenizer

from worker.engine.matcher import find_mask, new_matcher, new_vocabulary, reason_of
from worker.streams.native import native_poll, native_spawn, native_waitpid

# Of processor time. Schemas of thousands of values take a tenth of it.
LIMIT_S = 2.0
# Each row of a grammar takes as much in the server.
LIMIT_BYTES = 256 * 1024 * 1024
# Half of what threads have where least is given to them.
STACK_BYTES = 1024 * 1024
# For a machine that is busy, and for the vocabulary.
PATIENCE_S = 30.0
# Some grammars compile and can hardly be walked.
NUM_STEPS = 16

_ROOT = str(Path(__file__).resolve().parents[2])
_LENGTH = struct.Struct("<I")


class Vetter:
    """Says whether grammars can be compiled. Starts its process when it is first asked, and again if that has died."""

    def __init__(self, tokens: Sequence[bytes], special_ids: Sequence[int]) -> None:
        """See `new_vocabulary` for the arguments."""
        self._vocabulary = pickle.dumps((tokens, special_ids))
        self._pid = 0
        self._to, self._from = -1, -1

    def why_not(self, grammar: str) -> str:
        """What is wrong with a grammar; empty if nothing is.

        Raises:
            OSError: The process cannot be started, or was ended by somebody else.
        """
        if not self._pid:
            self._start()
        try:
            self._write(grammar.encode())
            return self._read().decode()
        except TimeoutError:
            self._stop()
            reason = _reason_for(signal.SIGPROF)
        except EOFError:
            reason = _reason_for(self._stop())
        if reason is None:
            raise OSError("the process that tries grammars was ended")
        return reason

    def __del__(self) -> None:
        if self._pid and not sys.is_finalizing():  # with this process its input ends, and with that it does
            self._stop()

    def _start(self) -> None:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        arguments = [sys.executable, "-m", "worker.engine.vet", str(LIMIT_S), str(LIMIT_BYTES)]
        environment = os.environ | {"PYTHONPATH": _ROOT, "MALLOC_ARENA_MAX": "1"}  # each arena looks like 64 MiB
        try:
            self._pid = native_spawn(arguments, environment, theirs_out, theirs_in)
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._write(self._vocabulary)

    def _stop(self) -> int:
        """End the process. Returns the signal that it died of, or 0 if it went by itself."""
        os.close(self._to)
        os.close(self._from)
        try:
            os.kill(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        _, status = native_waitpid(self._pid, 0)
        self._pid = 0
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

    def _write(self, data: bytes) -> None:
        try:
            rest = memoryview(_LENGTH.pack(len(data)) + data)
            while rest:
                rest = rest[os.write(self._to, rest) :]
        except BrokenPipeError:
            raise EOFError from None

    def _read(self) -> bytes:
        return self._receive(*_LENGTH.unpack(self._receive(_LENGTH.size)))

    def _receive(self, num_bytes: int) -> bytes:
        poll = native_poll()
        poll.register(self._from)
        data = b""
        while len(data) < num_bytes:
            if not poll.poll(PATIENCE_S * 1e3):
                raise TimeoutError
            piece = os.read(self._from, num_bytes - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data


def _reason_for(number: int) -> str | None:
    """What a grammar has done to the process, by the signal that it died of. None: it was not the grammar."""
    match number:
        case signal.SIGPROF:
            return f"it takes more than {LIMIT_S:g} s to compile; make it simpler"
        case signal.SIGSEGV | signal.SIGBUS:
            return "it is nested too deeply, or its references are; make it simpler"
        case signal.SIGABRT | 0:  # Rust and Python where there is no memory
            return f"it takes more than {LIMIT_BYTES // 2**20} MiB to compile; make it simpler"
    return None


def main(source: BinaryIO, target: BinaryIO, limit_s: float, limit_bytes: int) -> None:
    """Answer until there are no more questions."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # of a terminal or a platform, meant for the server
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokens, special_ids = pickle.loads(_next(source))
    vocabulary = new_vocabulary(tokens, special_ids)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # what a runtime says of its end is no news
    with open("/proc/self/statm") as statm:
        num_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes + limit_bytes,) * 2)
    threading.stack_size(STACK_BYTES)
    while grammar := _next(source).decode():
        reasons: list[str] = []
        signal.setitimer(signal.ITIMER_PROF, limit_s)  # nobody handles it: it kills
        thread = threading.Thread(target=_try, args=(vocabulary, grammar, len(tokens), reasons))
        thread.start()
        thread.join()
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer = reasons[0].encode()
        target.write(_LENGTH.pack(len(answer)) + answer)
        target.flush()


def _next(source: BinaryIO) -> bytes:
    head = source.read(_LENGTH.size)
    return source.read(*_LENGTH.unpack(head)) if head else b""


def _try(vocabulary: LLTokenizer, grammar: str, vocab_size: int, reasons: list[str]) -> None:
    """Compile a grammar and walk some steps of a text in it. Appends what is wrong."""
    matcher = new_matcher(vocabulary, grammar)
    reason = reason_of(matcher)
    rng = random.Random(0)
    try:
        for _ in range(NUM_STEPS):
            if reason or matcher.is_stopped():
                break
            mask = find_mask(matcher, vocab_size)
            allowed = [i for i in range(vocab_size) if mask[i // 8] >> i % 8 & 1]
            if not allowed:
                break
            matcher.consume_token(rng.choice(allowed))
            reason = reason_of(matcher)
    except RuntimeError as error:
        reason = str(error)
    reasons.append(reason)


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer, float(sys.argv[1]), int(sys.argv[2]))

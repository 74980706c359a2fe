"""Which tokens may come next, by the grammar that a request asks for. No torch.

Law: what is allowed next depends on the grammar and on what the row itself has drawn, on nothing else. A row has a
matcher of its own, which has seen exactly the tokens of its output; so it survives that the row is computed again.
A fault of one ends its own row.

llguidance compiles a grammar and walks it. To find the next tokens takes it some microseconds, now and then some
milliseconds, without the GIL: a thread does it while the model computes. Clients write the grammars: limits are set
here, what is beyond them or makes no sense is a refusal with llguidance's own words, and a panic of it is no different.
"""

import re
from collections import deque

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from worker.engine.panics import without_panics
from worker.engine.tokenizer import Tokenizer
from worker.errors import FieldError, InferenceFailed, InvalidRequest
from worker.streams.native import new_lock, start_thread
from worker.streams.wakeup import ThreadWaiter
from worker.structure import Structure

_LIMITS = LLParserLimits(verbose_errors=False)
# Behind the grammar, where it overrides what is before. What can go on in one way only would be cut into tokens by the
# tokenizer and the first one forced. So it is left to the model which of the tokens that spell it to take.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# Long beyond what the limits let anything take.
MASK_LIMIT_S = 10.0
IDLE_TICK_S = 60.0
_MAX_REASON_CHARACTERS = 300


class Constraint:
    """Where one row is in its grammar.

    Any thread may make it; then it belongs to the generation thread, but between `begin` and `wait` to the one that
    calls `find`.

    Attributes:
        is_complete: The answer is in the grammar, and nothing can follow.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, end_ids: frozenset[int], not_first_ids: list[int]) -> None:
        """Begin at the beginning; what may come first is to be found.

        Args:
            matcher: This row's own. Behind the tokens of the model it knows one more, with which a text ends.
            vocab_size: How many tokens the model has.
            end_ids: Those of them that end an answer.
            not_first_ids: Those that spell something else at the beginning of an answer.
        """
        self.is_complete = False
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._shut_ids = not_first_ids
        self._can_end = False
        self._mask = b""
        self._fault: BaseException | None = None
        self._is_found = new_lock()  # held while a mask is being found

    def begin(self) -> None:
        """Another thread is going to call `find`."""
        self._is_found.acquire()

    def find(self) -> None:
        """Find which tokens may come next. Whoever waits is told what went wrong; does not raise."""
        try:
            self._mask = self._find()
        except BaseException as fault:  # a panic of Rust is no Exception
            self._fault = fault
        finally:
            self._is_found.release()

    def _find(self) -> bytes:
        mask = bytearray(self._matcher.compute_bitmask())
        if self._matcher.is_error():  # of which the mask says nothing: it allows the end
            raise RuntimeError(reason_of(self._matcher.get_error()))
        for token_id in (*self._shut_ids, self._vocab_size):
            mask[token_id // 8] &= ~(1 << token_id % 8)
        self._can_end = self._matcher.is_accepting()
        is_shut = mask.count(0) == len(mask)
        self.is_complete = is_shut and self._can_end
        if is_shut and not self._can_end:
            raise RuntimeError("the grammar allows no token of this model here")
        if self._can_end:
            for end_id in self._end_ids:
                mask[end_id // 8] |= 1 << end_id % 8
        return bytes(mask)

    def wait(self) -> bytes:
        """What may come next, when it has been found.

        Returns:
            A bit for each token, the lowest of the first byte for token 0. More bits than the model has tokens.

        Raises:
            InferenceFailed: The grammar is at fault.
        """
        if not self._is_found.acquire(True, MASK_LIMIT_S):
            raise InferenceFailed(f"the grammar did not say within {MASK_LIMIT_S:g} s what may come next")
        self._is_found.release()
        if self._fault is not None:
            raise InferenceFailed(f"the answer cannot go on in its grammar: {self._fault}")
        return self._mask

    @without_panics("llguidance")
    def advance(self, token_id: int) -> None:
        """Take a token that was drawn. The next mask is to be found.

        Raises:
            InferenceFailed: The grammar does not allow it, or ends with it too early.
        """
        is_end = token_id in self._end_ids
        if is_end and self._can_end:
            self.is_complete = True
            return
        if not self._matcher.consume_token(token_id):
            raise InferenceFailed(f"the answer cannot go on in its grammar: {reason_of(self._matcher.get_error())}")
        self._shut_ids = []
        self.is_complete = self._matcher.is_stopped()
        if is_end and not self._matcher.is_accepting():
            raise InferenceFailed(f"the grammar goes on behind token {token_id}, which ends an answer of this model")


class MaskThread:
    """Finds masks one after the other while the model computes. Started when there is a first one."""

    def __init__(self) -> None:
        self._todo: deque[Constraint] = deque()
        self._waiter = ThreadWaiter()
        self._is_started = False
        self._is_closed = False

    def find(self, constraint: Constraint) -> None:
        """Have the next mask of a row found. Generation thread only."""
        constraint.begin()
        self._todo.append(constraint)
        if not self._is_started:
            self._is_started = True
            start_thread(self._run)
        self._waiter.wake()

    def close(self) -> None:
        """End the thread. Whoever waits for a mask still gets it."""
        self._is_closed = True
        self._waiter.wake()

    def _run(self) -> None:
        while True:
            self._waiter.arm()
            while self._todo:
                self._todo.popleft().find()
            if self._is_closed:
                return
            self._waiter.wait(IDLE_TICK_S)


class _Vocabulary:
    """The model's tokens as llguidance reads them, which takes it for a `TokenizerWrapper`."""

    is_tokenizer_wrapper = True
    # It makes one of its own behind the last token. A model may have several, and a grammar may name them.
    eos_token_id = None
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: frozenset[int]) -> None:
        self.tokens = [tokenizer.spell_bytes(token_id) for token_id in range(vocab_size)]
        # Those that end an answer have no text in it, whatever the tokenizer says.
        self.special_token_ids = [i for i in sorted(tokenizer.special_ids | end_ids) if i < vocab_size]

    def __call__(self, text: object) -> list[int]:
        raise NotImplementedError("nothing is forced, so nothing is cut into tokens")


class GrammarCompiler:
    """Compiles grammars for the tokens of one model. One thread at a time."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_ids = eos_ids
        self._vocabulary: LLTokenizer | None = None
        self._not_first_ids: list[int] = []

    def compile(self, structure: Structure) -> Constraint:
        """A row's place at the beginning of a grammar, with its first mask.

        Raises:
            InvalidRequest: It cannot be compiled, it holds no text, or the model's tokenizer does not do.
        """
        if self._tokenizer.drops_first_space is None:
            message = (
                "is not possible with this model: what its tokens spell depends on those around them; leave it out"
            )
            raise InvalidRequest([FieldError(structure.field, "not_supported", message)])
        try:
            matcher = self._matcher(structure)
            reason = reason_of(matcher.get_error())
            constraint = Constraint(matcher, self._vocab_size, self._end_ids, self._not_first_ids)
            if not reason:
                constraint.begin()
                constraint.find()
                constraint.wait()
        except (RuntimeError, InferenceFailed) as error:
            reason = str(error)
        if reason:
            raise InvalidRequest([FieldError(structure.field, "structure", f"makes no grammar: {reason}")])
        return constraint

    @without_panics("llguidance")
    def _matcher(self, structure: Structure) -> LLMatcher:
        if self._vocabulary is None:
            tokens = _Vocabulary(self._tokenizer, self._vocab_size, self._end_ids)
            if self._tokenizer.drops_first_space:
                self._not_first_ids = [i for i, token in enumerate(tokens.tokens) if token.startswith(b" ")]
            self._vocabulary = LLTokenizer(tokens)
        return LLMatcher(self._vocabulary, structure.grammar + _OPTIONS, log_level=0, limits=_LIMITS)


_EXCERPT = re.compile(r"^ +\d+ \| |^<", re.MULTILINE)  # of the grammar, or of the stack


def reason_of(error: str) -> str:
    """What llguidance says is wrong, in a line; empty if nothing is."""
    excerpt = _EXCERPT.search(error)
    reason = " ".join((error[: excerpt.start()] if excerpt else error).split())
    return reason if len(reason) <= _MAX_REASON_CHARACTERS else reason[:_MAX_REASON_CHARACTERS] + "..."

"""Which tokens may come next, by the grammar that a request asks for. No torch.

Law: what is allowed next depends on the grammar and on what the row itself has drawn, on nothing else. A row has a
matcher of its own, which has seen exactly the tokens of its output; so it survives that the row is computed again.
A fault of one ends its own row.

llguidance compiles a grammar and walks it. To find the next tokens takes it some microseconds, now and then some
milliseconds, without the GIL: a thread does it while the model computes. Clients write the grammars, so each is tried
in another process first (vet.py); what makes no sense is refused in llguidance's own words.
"""

from collections import OrderedDict, deque

from llguidance import LLMatcher

from worker.engine.matcher import find_mask, new_matcher, new_vocabulary, reason_of
from worker.engine.panics import without_panics
from worker.engine.tokenizer import Tokenizer
from worker.engine.vet import Vetter
from worker.errors import FieldError, InferenceFailed, InvalidRequest
from worker.streams.native import new_lock, start_thread
from worker.streams.wakeup import ThreadWaiter
from worker.structure import Structure

# Grammars that need not be tried again: most clients send the same one again and again.
NUM_TRIED = 256
# Long beyond what the limits let anything take.
MASK_LIMIT_S = 10.0
IDLE_TICK_S = 60.0


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
        mask = find_mask(self._matcher, self._vocab_size, self._shut_ids)
        self._can_end = self._matcher.is_accepting()
        self.is_complete = self._can_end and mask.count(0) == len(mask)
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
            raise InferenceFailed(f"the answer cannot go on in its grammar: {reason_of(self._matcher)}")
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


class GrammarCompiler:
    """Compiles grammars for the tokens of one model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: frozenset[int]) -> None:
        """Read the vocabulary.

        Args:
            tokenizer: One whose tokens spell the same wherever they stand.
            vocab_size: How many tokens the model has.
            end_ids: Those that end an answer. They have no text in it, whatever the tokenizer says.
        """
        tokens = [tokenizer.spell_bytes(token_id) for token_id in range(vocab_size)]
        special_ids = sorted(i for i in tokenizer.special_ids | end_ids if i < vocab_size)
        self._vocabulary = new_vocabulary(tokens, special_ids)
        self._vetter = Vetter(tokens, special_ids)
        self._tried: OrderedDict[str, None] = OrderedDict()
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._not_first_ids = [i for i, token in enumerate(tokens) if tokenizer.drops_first_space and token[:1] == b" "]

    def has_tried(self, structure: Structure) -> bool:
        """Whether it has lately been found to be good. Any thread."""
        return structure.grammar in self._tried

    def try_out(self, structure: Structure) -> None:
        """See in another process that a grammar can be compiled. One thread at a time.

        Raises:
            InvalidRequest: It cannot, or not within the limits.
            InferenceFailed: It cannot be tried.
        """
        if self.has_tried(structure):
            return
        try:
            reason = self._vetter.why_not(structure.grammar)
        except OSError as error:
            raise InferenceFailed(f"grammars cannot be tried on this server ({type(error).__name__})") from error
        if reason:
            raise _refusal(structure, reason)
        self._tried[structure.grammar] = None
        while len(self._tried) > NUM_TRIED:
            self._tried.popitem(last=False)

    def compile(self, structure: Structure) -> Constraint:
        """A row's place at the beginning of a grammar that has been tried, with its first mask. Any thread.

        Raises:
            InvalidRequest: It cannot be compiled, or it holds no text that may be an answer.
        """
        try:
            matcher = self._matcher(structure.grammar)
            constraint = Constraint(matcher, self._vocab_size, self._end_ids, self._not_first_ids)
            constraint.begin()
            constraint.find()
            constraint.wait()
        except (RuntimeError, InferenceFailed) as error:
            raise _refusal(structure, str(error)) from error
        return constraint

    @without_panics("llguidance")
    def _matcher(self, grammar: str) -> LLMatcher:
        return new_matcher(self._vocabulary, grammar)


def _refusal(structure: Structure, reason: str) -> InvalidRequest:
    return InvalidRequest([FieldError(structure.field, "structure", f"cannot be kept to: {reason}")])

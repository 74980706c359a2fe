"""A grammar's way to a constraint: tried and compiled beside the server, one at a time. No Flask, no torch.

Web side: any thread or greenlet.
"""

from functools import partial
from typing import TYPE_CHECKING

from worker.engine.constraints import Constraint, GrammarCompiler
from worker.errors import FieldError, InvalidRequest, Overloaded
from worker.streams.aside import new_aside
from worker.structure import Structure

if TYPE_CHECKING:
    from worker.engine.loader import LoadedModel


# Each may take some seconds to be tried.
MAX_WAITING = 16


class Grammars:
    """Compiles grammars in threads of its own. Who sends one that has been tried does not wait for those who do not."""

    def __init__(self) -> None:
        self._trying, self._compiling = new_aside(), new_aside()
        self._waiting: list[Structure] = []
        self._compiler: GrammarCompiler | None = None
        # Written in the one place where grammars are tried.
        self.num_vetted = self.num_refused = 0

    def constraint(self, structure: Structure, model: "LoadedModel") -> Constraint:
        """A place at the beginning of a grammar, for one answer.

        Raises:
            InvalidRequest: It is none, it is beyond the limits, or the model's tokenizer does not do.
            Overloaded: Too many wait to be tried.
            InferenceFailed: None can be tried.
        """
        if model.tokenizer.drops_first_space is None:
            message = "is not possible with this model, whose tokens do not say alone what they spell; leave it out"
            raise InvalidRequest([FieldError(structure.field, "not_supported", message)])
        compiler = self._compiler
        if compiler is None or not compiler.has_tried(structure):
            if len(self._waiting) >= MAX_WAITING:
                raise Overloaded(f"{MAX_WAITING} new grammars wait to be tried; try again later", retry_after_s=5)
            self._waiting.append(structure)
            try:
                compiler = self._trying.run(lambda: self._try(structure, model))
            finally:
                self._waiting.pop()
        return self._compiling.run(partial(compiler.compile, structure))

    def _try(self, structure: Structure, model: "LoadedModel") -> GrammarCompiler:
        compiler = self._compiler
        if compiler is None:  # takes a second for a large vocabulary
            compiler = self._compiler = GrammarCompiler(model.tokenizer, model.vocab_size, model.eos_ids)
        try:
            compiler.try_out(structure)
        except InvalidRequest:
            self.num_refused += 1
            raise
        self.num_vetted += 1
        return compiler

"""A grammar's way to a constraint: compiled beside the server, one at a time. No Flask, no torch.

Web side: any thread or greenlet.
"""

from typing import TYPE_CHECKING

from worker.engine.constraints import Constraint, GrammarCompiler
from worker.errors import FieldError, InvalidRequest
from worker.streams.aside import new_aside
from worker.structure import Structure

if TYPE_CHECKING:
    from worker.engine.loader import LoadedModel


class Grammars:
    """Compiles grammars in a thread of its own. Its first one takes longer: the vocabulary is read."""

    def __init__(self) -> None:
        self._aside = new_aside()
        self._compiler: GrammarCompiler | None = None

    def constraint(self, structure: Structure, model: "LoadedModel") -> Constraint:
        """A place at the beginning of a grammar, for one answer.

        Raises:
            InvalidRequest: It is none, it is beyond the limits, or the model's tokenizer does not do.
        """
        return self._aside.run(lambda: self._compiler_for(structure, model).compile(structure))

    def _compiler_for(self, structure: Structure, model: "LoadedModel") -> GrammarCompiler:
        if model.tokenizer.drops_first_space is None:
            message = "is not possible with this model, whose tokens do not say alone what they spell; leave it out"
            raise InvalidRequest([FieldError(structure.field, "not_supported", message)])
        if self._compiler is None:
            self._compiler = GrammarCompiler(model.tokenizer, model.vocab_size, model.eos_ids)
        return self._compiler

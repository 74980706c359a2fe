"""All jobs of this process: admission, idempotency keys, expiry. No Flask, no torch.

Every stream is a job (job.py), whichever API asked for it. Web side: any thread or greenlet.
"""

import hashlib
import math
import time
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from worker.answer import AnswerFormat
from worker.body import shorten
from worker.call_grammar import structure_of_calls
from worker.engine.constraints import Constraint
from worker.engine.endings import INCOMPLETE
from worker.engine.engine import Engine
from worker.engine.sequence import Deadlines, Sequence
from worker.engine.tokenizer import Tokenizer
from worker.errors import FieldError, InvalidRequest, KeyReused, UnknownJob
from worker.events import Event, Started, Terminal, merge_waiting
from worker.grammars import Grammars
from worker.job import GroupReader, Job, OnDisconnect
from worker.origin import NO_ORIGIN, Origin
from worker.prompts import (
    PromptEncoder,
    check_fits,
    check_min_tokens,
    check_tokens,
    check_tools,
    max_tokens_of,
)
from worker.request import GenerateRequest
from worker.settings import Settings
from worker.streams.channel import ReceiveChannel, Receiver, SendChannel, merge, open_channel
from worker.streams.narration import Narrator
from worker.streams.native import new_lock
from worker.streams.wakeup import Wakeup
from worker.structure import structure_of

# The end of a prompt in which a mark of reasoning is found, whatever pieces it is made of.
MARK_TOKENS = 16


class Jobs:
    """All jobs of this process, and the door through which new ones come."""

    def __init__(self, settings: Settings, engine: Engine, wakeup: Wakeup) -> None:
        self._settings = settings
        self._engine = engine
        self._wakeup = wakeup
        self._jobs: dict[str, Job] = {}
        # Guards _keyed: of two requests with one key that come at the same time, one makes the job.
        self._keys_lock = new_lock()
        self._keyed: dict[tuple[str, str], tuple[list[Job], bytes]] = {}  # by client and idempotency key
        self._encoder = PromptEncoder()
        self._grammars = Grammars()

    def start_once(
        self,
        key: str,
        requests: list[GenerateRequest],
        on_disconnect: OnDisconnect,
        *,
        body: str = "",
        client: str = "",
        origin: Origin = NO_ORIGIN,
        num_choices: int = 1,
        default_max_tokens: int | None = None,
    ) -> tuple[list[Job], bool]:
        """Admit requests as `start` does, unless some with this idempotency key have been: then those ones' jobs.

        What was refused has used up no key. A key is free again when its jobs have expired. Another client may use it
        too, and hears nothing of this one's jobs.

        Args:
            body: What else has to be the same the next time.

        Returns:
            The jobs, and whether they were there already.

        Raises:
            KeyReused: The key belongs to a different request.
            NotReady, Overloaded, RateLimited, InvalidRequest: As `start`.
        """
        place = client, key
        asked = f"{default_max_tokens} {num_choices} {[request.model_dump_json() for request in requests]} {body}"
        digest = hashlib.sha256(asked.encode()).digest()
        self._check_number(len(requests) * num_choices)
        with self._keys_lock:
            known = self._known(place)
        if known is None:
            # Outside of the lock, which greenlets wait for natively: a long prompt would stop everybody.
            admitted = [
                self._admit(request, client, on_disconnect, num_choices, default_max_tokens) for request in requests
            ]
            with self._keys_lock:
                known = self._known(place)
                if known is None:
                    jobs = self._launch_all(admitted, client, origin, on_disconnect, num_choices)
                    self._keyed[place] = jobs, digest
                    return jobs, False
        if known[1] != digest:
            raise KeyReused(
                f"the Idempotency-Key {key!r} belongs to another request; send a new key with a new request"
            )
        return known[0], True

    def _known(self, place: tuple[str, str]) -> tuple[list[Job], bytes] | None:
        known = self._keyed.get(place)
        return known if known is not None and all(job.id in self._jobs for job in known[0]) else None

    def start(
        self,
        requests: list[GenerateRequest],
        on_disconnect: OnDisconnect,
        *,
        client: str = "",
        origin: Origin = NO_ORIGIN,
        num_choices: int = 1,
        default_max_tokens: int | None = None,
    ) -> list[Job]:
        """Admit requests and queue them, all or none.

        Args:
            requests: Validated by their schema.
            on_disconnect: What the route does if the request does not say.
            client: Whose they are: the name of an API key, or empty where none is needed.
            origin: The HTTP request that makes them.
            num_choices: How many answers each gets. With a seed, the next answer has the next seed.
            default_max_tokens: How long an answer is that the request does not limit, where the context leaves as
                much. None: all that the context leaves.

        Returns:
            A job for each answer, those of one request beside each other.

        Raises:
            NotReady: Loading, draining or dead.
            Overloaded: Every slot and every place in the queue is taken.
            RateLimited: The client has as many open, or has used as many tokens, as it may.
            InvalidRequest: One can never fit, its deadline is above the server's, or there are too many.
        """
        self._check_number(len(requests) * num_choices)
        admitted = [
            self._admit(request, client, on_disconnect, num_choices, default_max_tokens) for request in requests
        ]
        return self._launch_all(admitted, client, origin, on_disconnect, num_choices)

    def _check_number(self, number: int) -> None:
        limit = self._settings.max_streams
        if number > limit:
            message = f"asks for {number} answers; there is never room for more than {limit}, so ask for fewer at once"
            raise InvalidRequest([FieldError("n", "too_many", message)])

    def _launch_all(
        self,
        admitted: "list[_Admitted]",
        client: str,
        origin: Origin,
        on_disconnect: OnDisconnect,
        num_choices: int,
    ) -> list[Job]:
        made = [
            self._make(one, client, origin, on_disconnect, choice) for one in admitted for choice in range(num_choices)
        ]
        self._engine.submit(*(sequence for _, sequence in made))
        jobs = [job for job, _ in made]
        self._jobs.update((job.id, job) for job in jobs)
        return jobs

    def _admit(
        self,
        request: GenerateRequest,
        client: str,
        on_disconnect: OnDisconnect,
        num_choices: int,
        default_max_tokens: int | None,
    ) -> "_Admitted":
        self._engine.check_room(client)  # before the work of encoding
        model = self._engine.model
        deadlines = self._deadlines(request, on_disconnect)
        check_tokens(request, model.vocab_size)
        check_tools(request, model.tokenizer.answer_format)
        prompt_ids = self._encoder.encode(request, model)
        max_tokens = max_tokens_of(request, len(prompt_ids), model.max_context, default_max_tokens)
        check_min_tokens(request, max_tokens)
        prompt_end = model.tokenizer.decode(prompt_ids[-MARK_TOKENS:]) if request.messages is not None else ""
        answer_format = model.tokenizer.answer_format.of_request(request, prompt_end)
        structure = structure_of_calls(request, answer_format) or structure_of(request, answer_format)
        constraints = [self._grammars.constraint(structure, model) for _ in range(num_choices)] if structure else []
        return _Admitted(request, prompt_ids, max_tokens, deadlines, model.tokenizer, answer_format, constraints)

    def _make(
        self, admitted: "_Admitted", client: str, origin: Origin, on_disconnect: OnDisconnect, choice: int
    ) -> tuple[Job, Sequence]:
        request = admitted.request
        params = request.sampling(admitted.max_tokens)
        if choice and params.seed is not None:
            params = replace(params, seed=params.seed + choice)
        job_id = uuid.uuid4().hex
        sender: SendChannel[Event, Terminal]
        receiver: ReceiveChannel[Event, Terminal]
        sender, receiver = open_channel(self._wakeup, INCOMPLETE, merge_waiting)
        source: Receiver[Event, Terminal] = receiver
        narrator = None
        if request.narrate:
            words: SendChannel[Event, None]
            heard: ReceiveChannel[Event, None]
            words, heard = open_channel(self._wakeup, None)
            narrator = Narrator(job_id, words)
            source = merge(self._wakeup, receiver, heard)
        sequence = Sequence(
            request_id=job_id,
            prompt_ids=admitted.prompt_ids,
            params=params,
            sender=sender,
            detokenizer=admitted.tokenizer.new_detokenizer(admitted.answer_format.special_marks),
            deadlines=admitted.deadlines,
            narrator=narrator,
            client=client,
            origin=origin,
            is_chat=request.messages is not None,
            constraint=admitted.constraints[choice] if admitted.constraints else None,
        )
        started = Started(job_id, self._settings.model_name, datetime.now(UTC).isoformat(timespec="milliseconds"))
        leaving = request.on_disconnect or on_disconnect
        job = Job(started, sequence, source, self._engine, self._wakeup, leaving, admitted.answer_format)
        return job, sequence

    def tokenize(
        self, request: GenerateRequest, *, add_special_tokens: bool | None = None, add_generation_prompt: bool = True
    ) -> list[int]:
        """The token ids that the model would get for a request, without a job. Bounded as `start` is.

        Raises:
            NotReady: Loading, draining or dead.
            InvalidRequest: It can never fit.
        """
        model = self._engine.model
        token_ids = self._encoder.encode(
            request, model, add_special_tokens=add_special_tokens, add_generation_prompt=add_generation_prompt
        )
        check_fits(request, len(token_ids), model.max_context)
        return token_ids

    @property
    def num_jobs(self) -> int:
        """Jobs that can be asked for, ended ones too."""
        return len(self._jobs)

    @property
    def num_grammars(self) -> tuple[int, int]:
        """New grammars that may be used, and those that may not."""
        return self._grammars.num_vetted, self._grammars.num_refused

    def read(self, jobs: list[Job]) -> GroupReader:
        """One reader for the jobs of one request."""
        return GroupReader(jobs, self._wakeup.new_waiter())

    def get(self, job_id: str, client: str = "") -> Job:
        """The job of this client with this id.

        Raises:
            UnknownJob: There is none, it has expired, or it is somebody else's, who may not even be known to exist.
        """
        job = self._jobs.get(job_id)
        if job is None or job.client != client:
            raise UnknownJob(
                f"no job has the id {shorten(repr(job_id))}; ended jobs are kept for {self._settings.job_ttl_s:g} s "
                "after their end, or the server has been replaced since"
            )
        return job

    def forget(self, job: Job) -> None:
        """Drop a job that nobody will ask for again. Idempotent."""
        if self._jobs.pop(job.id, None) is not None:
            job.close()

    def forget_unread(self, job: Job) -> None:
        """Drop a job as `forget` does, unless somebody reads it. Then it is kept as any other."""
        if not job.has_readers:
            self.forget(job)

    def sweep(self) -> None:
        """Cancel orphans; forget what ended long ago, and the oldest of what has ended when it is too much."""
        now, settings = time.monotonic(), self._settings
        ended = []
        for job in list(self._jobs.values()):  # dicts keep the order of arrival
            job.expire(now, settings.orphan_ttl_s)
            if job.ended_at is not None:
                ended.append(job)
        num_jobs, num_bytes = len(ended), sum(job.num_bytes for job in ended)
        for job in ended:
            is_old = job.ended_at is not None and now - job.ended_at > settings.job_ttl_s
            if is_old or num_jobs > settings.max_ended_jobs or num_bytes > settings.max_journal_bytes:
                self.forget(job)
                num_jobs, num_bytes = num_jobs - 1, num_bytes - job.num_bytes
        with self._keys_lock:
            self._keyed = {key: known for key, known in self._keyed.items() if self._known(key)}

    def _deadlines(self, request: GenerateRequest, on_disconnect: OnDisconnect) -> Deadlines:
        settings = self._settings
        total_s = settings.total_timeout_s
        if request.deadline_s is not None:
            if request.deadline_s > total_s:
                message = f"must be at most {total_s:g}, the server's own limit, not {request.deadline_s:g}"
                raise InvalidRequest([FieldError("deadline_s", "less_than_equal", message)])
            total_s = request.deadline_s
        # A job that goes on without readers is looked after by `sweep`, not by its channel being read.
        goes_on = (request.on_disconnect or on_disconnect) == "continue"
        return Deadlines(
            queue_s=settings.queue_timeout_s,
            first_token_s=settings.first_token_timeout_s,
            token_s=settings.token_timeout_s,
            total_s=total_s,
            claim_s=math.inf if goes_on else settings.claim_timeout_s,
            slow_consumer_s=math.inf if goes_on else settings.slow_consumer_s,
        )


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that fits, and what has been found out about it."""

    request: GenerateRequest
    prompt_ids: list[int]
    max_tokens: int
    deadlines: Deadlines
    tokenizer: Tokenizer
    answer_format: AnswerFormat
    constraints: list[Constraint]  # one for each choice, or none

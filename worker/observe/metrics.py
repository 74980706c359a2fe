"""What `/metrics` shows, in Prometheus' format. docs/metrics.md lists all of it.

Names, labels and buckets are vLLM's where the meaning is the same, so that its dashboards read ours; what is ours
begins with `endstop_`. Law: nothing here runs on the generation thread; of that thread it reads plain numbers
(tallies.py). Web side: any thread or greenlet.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from worker.observe.log import Outcome
from worker.observe.tallies import EngineNumbers, Tallies, Tally

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4  # what every scraper of the last ten years reads
STATES = ("LOADING", "READY", "DRAINING", "DEAD")

# vLLM's, as in tallies.py.
_LATENCY_BOUNDS_S: tuple[float, ...] = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0)
_LATENCY_BOUNDS_S += (40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
# Why an answer ended, in vLLM's words: OpenAI's two, and what is none of theirs.
_FINISHED = {"EOS": "stop", "STOP_SEQUENCE": "stop", "MAX_TOKENS": "length", "cancelled": "abort", "error": "error"}

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which says when it was made and nobody plots


@dataclass(frozen=True, slots=True)
class WebNumbers:
    """The web side at one moment.

    Attributes:
        num_streams: Streams that are being read.
        num_jobs: Jobs that can be asked for, ended ones too.
        num_vetted: Grammars that were tried out and may be used.
        num_refused: Grammars that may not.
    """

    num_streams: int
    num_jobs: int
    num_vetted: int
    num_refused: int


class Metrics:
    """All metrics of a process. What happens on the web side is counted here, the rest is read when somebody asks."""

    def __init__(
        self,
        model_name: str,
        max_context: int,
        limits: Mapping[str, int],
        engine: Callable[[], EngineNumbers],
        tallies: Tallies,
        web: Callable[[], WebNumbers],
    ) -> None:
        """Count nothing yet.

        Args:
            model_name: The label of every metric.
            max_context: The longest prompt and answer, which buckets go up to.
            limits: Settings that are shown beside what they limit: `slots` and `streams`.
            engine: The engine now.
            tallies: What its generation thread counts.
            web: The web side now.
        """
        self.registry = CollectorRegistry(auto_describe=False)
        self._model_name = model_name
        token_bounds = bounds_1_2_5(max_context)
        self._finished = self._counter("vllm:request_success", "Requests that ended, by reason.", "finished_reason")
        self._e2e_s = self._histogram("vllm:e2e_request_latency_seconds", "From acceptance to the end of a request.")
        self._queue_s = self._histogram("vllm:request_queue_time_seconds", "From acceptance to a slot, or to the end.")
        self._prefill_s = self._histogram("vllm:request_prefill_time_seconds", "From a slot to the first token.")
        self._decode_s = self._histogram("vllm:request_decode_time_seconds", "From the first token to the last.")
        self._prompt = self._histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", token_bounds)
        self._generation = self._histogram("vllm:request_generation_tokens", "Tokens of an answer.", token_bounds)
        self._outcomes = self._counter("endstop_outcomes", "Requests that ended, by how and why.", "outcome", "code")
        self._responses = self._counter("endstop_responses", "HTTP answers, by route and status.", "route", "status")
        self._refusals = self._counter("endstop_refusals", "Requests that were refused, by code.", "code")
        self._resumes = self._counter("endstop_resumes", "Readers that came back to where they were.")
        self._replays = self._counter("endstop_idempotent_replays", "Requests whose jobs an earlier one had made.")
        for reason in dict.fromkeys(_FINISHED.values()):
            self._finished.labels(model_name, reason)  # 0 until there is one: `rate` needs a value before the first
        self.registry.register(_EngineCollector(model_name, limits, engine, tallies, web))
        ProcessCollector(registry=self.registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        counter = Counter(name, about, ("model_name", *labels), registry=self.registry)
        if not labels:
            counter.labels(self._model_name)
        return counter

    def _histogram(self, name: str, about: str, bounds: tuple[float, ...] = _LATENCY_BOUNDS_S) -> Histogram:
        histogram = Histogram(name, about, ("model_name",), registry=self.registry, buckets=bounds)
        histogram.labels(self._model_name)
        return histogram

    def note_outcome(self, outcome: Outcome) -> None:
        """Count a request that has ended."""
        name = self._model_name
        self._outcomes.labels(name, outcome.outcome, outcome.detail).inc()
        self._finished.labels(name, _FINISHED.get(outcome.outcome) or _FINISHED[outcome.detail]).inc()
        self._e2e_s.labels(name).observe(outcome.total_ms / 1e3)
        self._queue_s.labels(name).observe(outcome.queue_ms / 1e3)
        if outcome.ttft_ms is not None:
            self._prefill_s.labels(name).observe((outcome.ttft_ms - outcome.queue_ms) / 1e3)
            self._decode_s.labels(name).observe(outcome.decode_ms / 1e3)
        self._prompt.labels(name).observe(outcome.usage.prompt_tokens)
        self._generation.labels(name).observe(outcome.usage.completion_tokens)

    def note_response(self, route: str, status: int) -> None:
        """Count an HTTP answer.

        Args:
            route: As the app has it, not as the client wrote it: a label must not have as many values as there are ids.
        """
        self._responses.labels(self._model_name, route, str(status)).inc()

    def note_refusal(self, code: str) -> None:
        """Count a request that was refused."""
        self._refusals.labels(self._model_name, code).inc()

    def note_resume(self) -> None:
        """Count a reader that came back."""
        self._resumes.labels(self._model_name).inc()

    def note_replay(self) -> None:
        """Count a request whose jobs were there already."""
        self._replays.labels(self._model_name).inc()

    def exposition(self) -> bytes:
        """All of them, as CONTENT_TYPE."""
        return generate_latest(self.registry)


def bounds_1_2_5(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 ... up to `limit`: vLLM's buckets of tokens."""
    return tuple(factor * 10**power for power in range(10) for factor in (1, 2, 5) if factor * 10**power <= limit)


class _EngineCollector:
    """Reads the engine, and of the web side what has numbers of its own, at the moment of a scrape."""

    def __init__(
        self,
        model_name: str,
        limits: Mapping[str, int],
        engine: Callable[[], EngineNumbers],
        tallies: Tallies,
        web: Callable[[], WebNumbers],
    ) -> None:
        self._model_name = model_name
        self._limits = limits
        self._engine = engine
        self._tallies = tallies
        self._web = web

    def collect(self) -> Iterator[Metric]:
        now, tallies, web = self._engine(), self._tallies, self._web()
        yield self._gauge("vllm:num_requests_running", "Requests that hold a slot.", now.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait for a slot.", now.num_waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the cache that is in use, 0 to 1.", now.cache_usage)
        about = "Share of the cache that is free and known to hold what some prompt may begin with."
        yield self._gauge("endstop_cache_remembered", about, now.cache_remembered)
        yield self._total("vllm:prefix_cache_queries", "Tokens looked for in the cache.", now.num_prefix_tokens)
        yield self._total("vllm:prefix_cache_hits", "Tokens found in the cache.", now.num_prefix_hits)
        yield self._total("vllm:num_preemptions", "Requests that gave their blocks up.", now.num_preempted)
        yield self._total("vllm:prompt_tokens", "Tokens of computed prompts.", tallies.num_prompt_tokens)
        yield self._total("vllm:generation_tokens", "Generated tokens.", tallies.num_generated)
        yield self._total("vllm:spec_decode_num_draft_tokens", "Guessed tokens.", now.num_guessed)
        yield self._total("vllm:spec_decode_num_accepted_tokens", "Tokens guessed right.", tallies.num_accepted)
        about = "From acceptance to the first token."
        yield self._histogram("vllm:time_to_first_token_seconds", about, tallies.ttft_s)
        yield self._histogram("vllm:inter_token_latency_seconds", "Between two tokens of an answer.", tallies.gap_s)
        yield self._histogram("vllm:iteration_tokens_total", "Tokens that a step computes.", tallies.step_tokens)
        yield self._histogram("endstop_step_seconds", "How long a step takes.", tallies.step_s)
        yield self._by("endstop_state", "1 for the state that the engine is in.", "state", _one_of(STATES, now.state))
        yield self._by("endstop_info", "1, with where the model runs.", "device", {now.device: 1})
        yield self._by("endstop_limit", "Settings that limit requests.", "what", self._limits)
        yield self._gauge("endstop_uptime_seconds", "Since the engine began to load.", now.uptime_s)
        yield self._gauge("endstop_streams_open", "Streams that are being read.", web.num_streams)
        yield self._gauge("endstop_jobs", "Jobs that can be asked for, ended ones too.", web.num_jobs)
        yield self._gauge("endstop_backlog_events", "Events that wait for readers.", now.backlog_events)
        about = "New grammars, by whether they may be used."
        grammars = {"vetted": web.num_vetted, "refused": web.num_refused}
        yield self._total_by("endstop_grammars", about, "result", grammars)
        about = "Time of the generation thread, by phase."
        yield self._total_by("endstop_phase_seconds", about, "phase", now.phase_total_s)
        about = "The longest that each phase has taken."
        yield self._by("endstop_phase_longest_seconds", about, "phase", now.phase_longest_s)
        about = "How long the generation thread has been in its phase."
        yield self._by("endstop_phase_age_seconds", about, "phase", {now.phase: now.phase_age_s})
        yield self._gauge("endstop_watchdog_age_seconds", "Since the watchdog looked.", now.watchdog_age_s)
        about = "Streams ended while the generation thread could not."
        yield self._total("endstop_ended_from_outside", about, now.num_ended_outside)
        yield self._total("endstop_standstills", "How often the process stood still.", now.num_standstills)

    def _gauge(self, name: str, about: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, about, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family

    def _by(self, name: str, about: str, label: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(name, about, labels=("model_name", label))
        for value, number in values.items():
            family.add_metric((self._model_name, str(value)), number)
        return family

    def _total(self, name: str, about: str, value: float) -> Metric:
        family = CounterMetricFamily(name, about, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family

    def _total_by(self, name: str, about: str, label: str, values: Mapping[str, float]) -> Metric:
        family = CounterMetricFamily(name, about, labels=("model_name", label))
        for value, number in values.items():
            family.add_metric((self._model_name, str(value)), number)
        return family

    def _histogram(self, name: str, about: str, tally: Tally) -> Metric:
        family = HistogramMetricFamily(name, about, labels=("model_name",))
        buckets, total = tally.cumulated()
        family.add_metric((self._model_name,), buckets, total)
        return family


def _one_of(names: tuple[str, ...], current: str) -> dict[str, float]:
    return {name: float(name == current) for name in names}

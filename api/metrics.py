"""What this process counts for Prometheus, under the field's usual names."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from api.errors import ApiError
from worker.wire.messages import Chat, Delta, Finished, GenerateJob, Timing

PREFIX = "dfastllm"

_LATENCY_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_INTER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_CHOICES = (1, 2, 5, 10, 20, 50, 100)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class ApiMetrics:
    """One registry an application, so that tests may make many."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.responses = self._counter(
            "http_requests", "HTTP answers begun", ["endpoint", "method", "status"]
        )
        self.in_flight = Gauge(
            "requests_in_flight", "Generation requests not answered yet", ["model_name"],
            namespace=PREFIX, registry=self.registry,
        )  # fmt: skip
        self.success = self._counter(
            "request_success", "Choices that ended well", ["model_name", "finished_reason"]
        )
        self.failed = self._counter("requests_failed", "Requests that ended in an error", ["code"])
        self.rejected = self._counter(
            "requests_rejected", "Requests refused before the queue", ["reason"]
        )
        self.cancelled = self._counter(
            "requests_cancelled", "Requests whose client went away", ["phase"]
        )
        self.ttft = self._histogram(
            "time_to_first_token_seconds", "Streams: until the first token", _LATENCY_S
        )
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Streams: between events of a choice", _INTER_TOKEN_S
        )
        self.e2e = self._histogram(
            "e2e_request_latency_seconds", "From the request to its end", _LATENCY_S
        )
        self.prompt_size = self._histogram("request_prompt_tokens", "Prompt tokens", _TOKENS)
        self.generation_size = self._histogram(
            "request_generation_tokens", "Output tokens", _TOKENS
        )
        self.batch_lines = self._counter("batch_lines", "Lines of batches done", ["outcome"])
        self.stream_resumes = self._counter(
            "stream_resumes", "Streams read on after an event", ["model_name"]
        )
        self.infills = self._counter(
            "infill_requests", "Requests whose holes were filled", ["model_name"]
        )
        self._add_token_counters()
        self._add_phases()

    def count_line(self, is_good: bool) -> None:
        self.batch_lines.labels("completed" if is_good else "failed").inc()

    def _add_phases(self) -> None:
        """Add how long the phases of a request take, as its worker says, and what was asked for."""
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "Until a worker took it", _LATENCY_S
        )
        self.prefill_time = self._histogram(
            "request_prefill_time_seconds", "From there to the first token", _LATENCY_S
        )
        self.decode_time = self._histogram(
            "request_decode_time_seconds", "From the first token to the end", _LATENCY_S
        )
        self.inference_time = self._histogram(
            "request_inference_time_seconds", "Prefill and decode", _LATENCY_S
        )
        self.time_per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "Requests of one choice: decode time for each token after the first",
            _PER_TOKEN_S,
        )
        self.longest_choice = self._histogram(
            "request_max_num_generation_tokens", "Requests of one choice: its tokens", _TOKENS
        )
        self.params_n = self._histogram("request_params_n", "Choices asked for", _CHOICES)
        self.params_max_tokens = self._histogram(
            "request_params_max_tokens", "The limit given on output tokens", _TOKENS
        )

    def _add_token_counters(self) -> None:
        model = ["model_name"]
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens", model)
        self.cached_tokens = self._counter(
            "prompt_tokens_cached", "Prompt tokens found in the prefix cache", model
        )
        self.generation_tokens = self._counter("generation_tokens", "Output tokens", model)
        self.drafts = self._counter("spec_decode_num_drafts", "Verify steps", model)
        self.draft_tokens = self._counter("spec_decode_num_draft_tokens", "Drafted tokens", model)
        self.accepted_tokens = self._counter(
            "spec_decode_num_accepted_tokens", "Draft tokens accepted", model
        )
        self.accepted_per_pos = self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted at a position of the draft",
            ["model_name", "position"],
        )

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            name, text, ["model_name"], namespace=PREFIX, buckets=buckets, registry=self.registry
        )


def num_choices(job: GenerateJob) -> int:
    return job.n * (1 if isinstance(job.input, Chat) else len(job.input.prompts))


class JobObserver:
    """Watches one job from its request to its end. `end` it always; only the first call counts."""

    def __init__(self, metrics: ApiMetrics, job: GenerateJob) -> None:
        self._metrics = metrics
        self._job = job
        self._model = job.model
        self._is_stream = job.stream
        self._start = time.perf_counter()
        self._last: dict[int, float] = {}  # when each choice last moved
        self._phase = "queued"
        self.is_handed_over = False  # set where a stream takes over the duty to call `end`
        self._inter_token = metrics.inter_token.labels(job.model)
        metrics.in_flight.labels(job.model).inc()

    def see(self, events: list[Delta | Finished]) -> None:
        if not events or self._phase == "ended":
            return
        now = time.perf_counter()
        for event in events:
            if isinstance(event, Finished):
                self._finish(event, now)
            else:
                self._see_delta(event, now)

    def mute(self) -> None:
        """Count nothing: the answer is another request's, told once more."""
        self._phase = "ended"
        self._metrics.in_flight.labels(self._model).dec()

    def fail(self, error: ApiError) -> None:
        if self._phase == "ended":
            return
        self._phase = "failed"
        self._metrics.failed.labels(error.code or "unknown").inc()

    def end(self) -> None:
        """Count a job that neither finished nor failed as given up by its client."""
        if self._phase == "ended":
            return
        if self._phase in ("queued", "running"):
            self._metrics.cancelled.labels(self._phase).inc()
        self._phase = "ended"
        self._metrics.in_flight.labels(self._model).dec()

    def _see_delta(self, delta: Delta, now: float) -> None:
        # Deltas of an answer in one piece come in bundles: their times say nothing.
        if self._is_stream:
            if not self._last:
                self._metrics.ttft.labels(self._model).observe(now - self._start)
            elif (last := self._last.get(delta.choice)) is not None:
                self._inter_token.observe(now - last)
        self._last[delta.choice] = now
        self._phase = "running"
        if delta.finish_reason is not None:
            self._metrics.success.labels(self._model, delta.finish_reason).inc()

    def _finish(self, finished: Finished, now: float) -> None:
        metrics, model, usage = self._metrics, self._model, finished.usage
        self._phase = "finished"
        metrics.e2e.labels(model).observe(now - self._start)
        metrics.prompt_size.labels(model).observe(usage.num_prompt_tokens)
        metrics.generation_size.labels(model).observe(usage.num_output_tokens)
        metrics.prompt_tokens.labels(model).inc(usage.num_prompt_tokens)
        metrics.cached_tokens.labels(model).inc(usage.num_cached_tokens)
        metrics.generation_tokens.labels(model).inc(usage.num_output_tokens)
        self._count_request(self._job, usage.num_output_tokens)
        if finished.timing is not None:
            self._count_phases(finished.timing, finished)
        if finished.draft is not None:
            self._count_drafts(finished.draft.num_draft_tokens, finished.draft.histogram)

    def _count_request(self, job: GenerateJob, num_tokens: int) -> None:
        metrics, model = self._metrics, self._model
        metrics.params_n.labels(model).observe(job.n)
        if num_choices(job) == 1:
            metrics.longest_choice.labels(model).observe(num_tokens)
        if job.sampling.max_tokens is not None:
            metrics.params_max_tokens.labels(model).observe(job.sampling.max_tokens)
        if job.options is not None and job.options.suffixes:
            metrics.infills.labels(model).inc()

    def _count_phases(self, timing: Timing, finished: Finished) -> None:
        metrics, model = self._metrics, self._model
        metrics.queue_time.labels(model).observe(timing.queue_s)
        metrics.prefill_time.labels(model).observe(timing.prefill_s)
        metrics.decode_time.labels(model).observe(timing.decode_s)
        metrics.inference_time.labels(model).observe(timing.prefill_s + timing.decode_s)
        num_tokens = finished.usage.num_output_tokens
        # Of a later attempt only a part of the tokens is its own, and choices overlap in time.
        if finished.attempt == 1 and num_choices(self._job) == 1 and num_tokens > 1:
            per_token_s = timing.decode_s / (num_tokens - 1)
            metrics.time_per_token.labels(model).observe(per_token_s)

    def _count_drafts(self, num_draft_tokens: int, histogram: list[int]) -> None:
        metrics, model = self._metrics, self._model
        metrics.drafts.labels(model).inc(sum(histogram))
        metrics.draft_tokens.labels(model).inc(num_draft_tokens)
        metrics.accepted_tokens.labels(model).inc(sum(j * n for j, n in enumerate(histogram)))
        for position in range(len(histogram) - 1):
            # A step that accepted j tokens accepted positions 0 to j - 1.
            num_steps = sum(histogram[position + 1 :])
            metrics.accepted_per_pos.labels(model, str(position)).inc(num_steps)

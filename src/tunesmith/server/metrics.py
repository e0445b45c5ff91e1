"""Counters of the gateway in Prometheus' text format. Plain integers while answering; text is made when asked for.

Every series exists under `tunesmith_` and, where vLLM has one of the same meaning, under its `vllm:` name, so that
dashboards made for vLLM work.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from tunesmith.protocols import Chunk

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Histogram:
    """Counts of values per bucket, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """((upper bound, cumulative count) ..., sum)."""
        total = 0
        result: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            result.append((bound, total))
        return result, self._sum


class Answer:
    """The life of one choice. Ends as stop, length, abort or error, whichever is first."""

    def __init__(self, metrics: Metrics, started: float) -> None:
        self._metrics = metrics
        self._started = started
        self._last = 0.0
        self._tokens = 0
        self._ended = False

    def begin(self, prompt_tokens: int) -> None:
        """The engine has the prompt now."""
        self._metrics.prompt_tokens += prompt_tokens

    def token(self) -> None:
        """A piece arrived."""
        self._tokens += 1
        if not self._last:
            self._last = time.monotonic()
            self._metrics.first_token.add(self._last - self._started)

    def finish(self, chunk: Chunk) -> None:
        """The last chunk arrived."""
        metrics = self._metrics
        metrics.cached_tokens += chunk.cached_tokens
        metrics.completion_tokens += chunk.completion_tokens
        self._end(chunk.finish_reason or "stop")

    def fail(self) -> None:
        self._end("error")

    def close(self) -> None:
        """Whatever has not ended by now was given up by the client; its pieces count as tokens."""
        if not self._ended:
            self._metrics.completion_tokens += self._tokens
            self._end("abort")

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            self._metrics.answers[reason] += 1
            self._metrics.whole_answer.add(time.monotonic() - self._started)


class Metrics:
    """All figures of one server."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.answers: dict[str, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self.responses: dict[tuple[str, int], int] = {}  # (path, status) -> count
        self.first_token = Histogram(_SECONDS)
        self.whole_answer = Histogram(_SECONDS)
        self.running: Callable[[], int] = lambda: 0
        self.waiting: Callable[[], int] = lambda: 0
        self._model = ""
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(self))  # type: ignore[arg-type]  # the library asks for its own class

    def attach(self, model: str, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Name the model and where the gauges are read."""
        self._model, self.running, self.waiting = model, running, waiting

    def answer(self, started: float) -> Answer:
        """Follow one choice."""
        return Answer(self, started)

    def count_response(self, path: str, status: int) -> None:
        key = (path, status)
        self.responses[key] = self.responses.get(key, 0) + 1

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """The series, each under its names."""
        labels = {"model_name": self._model}
        yield from _counters("prompt_tokens", "Prompt tokens read.", labels, [({}, self.prompt_tokens)])
        yield from _counters("generation_tokens", "Tokens written.", labels, [({}, self.completion_tokens)])
        yield from _counters(
            "prompt_tokens_cached", "Prompt tokens found in a cache.", labels, [({}, self.cached_tokens)]
        )
        ends = [({"finished_reason": reason}, count) for reason, count in self.answers.items()]
        yield from _counters("request_success", "Answers by how they ended.", labels, ends)
        yield from _gauges("num_requests_running", "Answers being written.", labels, self.running())
        yield from _gauges("num_requests_waiting", "Answers that wait for a slot.", labels, self.waiting())
        yield from _histograms("time_to_first_token_seconds", "Request to first token.", labels, self.first_token)
        yield from _histograms("e2e_request_latency_seconds", "Request to last token.", labels, self.whole_answer)
        http = CounterMetricFamily(
            "tunesmith_http_responses", "Responses by path and status.", labels=["path", "status"]
        )
        for (path, status), count in sorted(self.responses.items()):
            http.add_metric([path, str(status)], count)
        yield http


class _Collector:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.collect()


_PREFIXES = ("tunesmith_", "vllm:")


def _counters(name: str, text: str, labels: dict[str, str], rows: list[tuple[dict[str, str], int]]) -> Iterable[Metric]:
    for prefix in _PREFIXES:
        family = CounterMetricFamily(prefix + name, text, labels=[*labels, *rows[0][0]])
        for extra, value in rows:
            family.add_metric([*labels.values(), *extra.values()], value)
        yield family


def _gauges(name: str, text: str, labels: dict[str, str], value: float) -> Iterable[Metric]:
    for prefix in _PREFIXES:
        family = GaugeMetricFamily(prefix + name, text, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        yield family


def _histograms(name: str, text: str, labels: dict[str, str], histogram: Histogram) -> Iterable[Metric]:
    buckets, total = histogram.buckets()
    for prefix in _PREFIXES:
        family: Any = HistogramMetricFamily(prefix + name, text, labels=list(labels))
        family.add_metric(list(labels.values()), buckets, total)
        yield family

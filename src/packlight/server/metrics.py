"""Numbers of a server for Prometheus, in a registry of its own: two servers in one process have their own numbers."""

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily
from starlette.routing import Match, Route

from packlight.server.accounts import Account

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"  # the route of a path that is none, so that no client makes new rows
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Metrics:
    """What has happened so far, and what is so now."""

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "packlight", "registry": registry}
        timed: dict[str, Any] = {**own, "buckets": SECONDS}
        self._requests = Counter("requests", "Answers, by route and status", ["route", "code"], **own)
        self._request = Histogram("request_seconds", "From a request's head to the end of its answer", **timed)
        self._first = Histogram("time_to_first_token_seconds", "From a request's head to its first token", **timed)
        self._gap = Histogram("inter_token_seconds", "Between two tokens of a text", **timed)
        self._queue = Histogram("queue_seconds", "That a request waited for a slot", **timed)
        self._prompt = Counter("prompt_tokens", "Tokens of prompts, cached ones with them", **own)
        self._cached = Counter("cached_tokens", "Tokens of prompts that a cache had", **own)
        self._generated = Counter("generated_tokens", "Tokens of answers", **own)
        self._drafted = Counter("draft_tokens", "Tokens that were guessed", **own)
        self._accepted = Counter("accepted_draft_tokens", "Tokens that were guessed, and right", **own)
        self._running = Gauge("running", "Texts that have a slot", **own)
        self._waiting = Gauge("waiting", "Texts that wait for a slot", **own)
        self._slots = Gauge("slots", "Texts that may have a slot", **own)
        self._rejected = Counter("rejected", "Requests that were refused, by reason", ["reason"], **own)
        self._compiles: Callable[[], float] = lambda: 0
        registry.register(self)

    def watch(
        self,
        running: Callable[[], float],
        waiting: Callable[[], float],
        slots: Callable[[], float],
        compiles: Callable[[], float],
    ) -> None:
        """From where the numbers come that are asked for and not told. compiles: since the server was ready."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)
        self._slots.set_function(slots)
        self._compiles = compiles

    def observe_gap(self, seconds: float) -> None:
        """Books the time between two tokens of a text."""
        self._gap.observe(seconds)

    def reject(self, reason: str) -> None:
        """Books a request that was refused. reason: one of few, never a client's word."""
        self._rejected.labels(reason).inc()

    def book(self, route: str, account: Account) -> None:
        """Books a request that has ended. route: the pattern of its path, or OTHER."""
        self._requests.labels(route, str(account.code)).inc()
        self._request.observe(account.seconds)
        if account.reason is not None:
            self.reject(account.reason)
        for histogram, seconds in ((self._first, account.first_token_s), (self._queue, account.queue_s)):
            if seconds is not None:
                histogram.observe(seconds)
        self._prompt.inc(account.prompt_tokens or 0)
        self._cached.inc(account.cached_tokens or 0)
        self._generated.inc(account.generated_tokens or 0)
        self._drafted.inc(account.drafted_tokens)
        self._accepted.inc(account.accepted_tokens)

    def collect(self) -> Iterable[Metric]:
        """The counter that is asked for; the registry calls this."""
        yield CounterMetricFamily("packlight_compiles", "Compilations since the server was ready", self._compiles())

    def text(self) -> bytes:
        """All numbers in Prometheus's text format."""
        return generate_latest(_WithoutBirths(self._registry))  # pyright: ignore[reportArgumentType]


class _WithoutBirths:
    """A registry without the rows that say when each counter was made, three in ten of all rows."""

    def __init__(self, registry: CollectorRegistry):
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def route_of(app: Any, scope: MutableMapping[str, Any]) -> str:
    """The pattern of the app's route that a request goes to, or OTHER."""
    for route in getattr(app, "routes", ()):
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            return route.path
    return OTHER

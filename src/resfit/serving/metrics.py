"""What Prometheus reads at ``/metrics``. Each server has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

#: Content type of :meth:`Metrics.text`.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The figures of one server.

    Label values come from fixed sets (routes, statuses, stages, names of models on disk), never from a request.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Histogram(
            "resfit_request_seconds",
            "Time of a request from its head to its answer.",
            ("route", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "resfit_stage_seconds",
            "Time of one stage: read and decode a request, wait in the queue, run the network, explain.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batches = Histogram(
            "resfit_batch_images",
            "Images in one pass of the network.",
            buckets=_IMAGES,
            registry=self.registry,
        )
        self._errors = Counter("resfit_errors", "Requests refused, by reason.", ("reason",), registry=self.registry)
        self._loaded = Gauge(
            "resfit_model_loaded", "1 for each version that is served.", ("model", "version"), registry=self.registry
        )

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a figure that is read when it is asked for."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(route, str(status)).observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """Counts the time of a stage."""
        self._stages.labels(name).observe(seconds)

    def batch(self, images: int) -> None:
        """Counts a batch."""
        self._batches.observe(images)

    def error(self, reason: str) -> None:
        """Counts a refusal."""
        self._errors.labels(reason).inc()

    def loaded(self, model: str, version: int, is_loaded: bool) -> None:
        """Notes that a version is served, or no more."""
        if is_loaded:
            self._loaded.labels(model, str(version)).set(1)
        else:
            self._loaded.remove(model, str(version))

    def text(self) -> bytes:
        """Returns all figures in Prometheus' text format."""
        return generate_latest(self.registry)

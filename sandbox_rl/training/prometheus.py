"""The newest metrics of a run in Prometheus' text format, for whoever collects them, while the run lasts."""

from __future__ import annotations

import math
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerState

from sandbox_rl.errors import ConfigError
from sandbox_rl.metrics import Logs
from sandbox_rl.training.config import MetricsSettings

_HERE = "127.0.0.1"


class PrometheusEndpoint(TrainerCallback):  # type: ignore[misc]
    """Keeps the last value of each metric; a collector of `prometheus_client`.

    Args:
        run: its name, the label of all values.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._values: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def on_log(self, args: object, state: TrainerState, control: object, logs: Logs, **kwargs: Any) -> None:
        """Of updates and of evaluations."""
        self.take({"step": float(state.global_step), "steps": float(state.max_steps), **(logs or {})})

    def take(self, logs: Mapping[str, Any]) -> None:
        """Newer values, by their names in `metrics.jsonl`."""
        with self._lock:
            for name, value in logs.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._values["sandbox_rl_" + re.sub(r"\W", "_", name)] = name, float(value)

    def collect(self) -> Iterator[Any]:
        """What `prometheus_client` asks for on each request."""
        from prometheus_client.core import GaugeMetricFamily

        with self._lock:
            values = sorted(self._values.items())
        for name, (ours, value) in values:
            gauge = GaugeMetricFamily(name, ours, labels=["run"])
            gauge.add_metric([self._run], value)
            yield gauge


def check_prometheus(settings: MetricsSettings) -> None:
    """Before anything takes long.

    Raises:
        ConfigError: the endpoint is asked for, and what it needs is not installed, or its port is in use.
    """
    if settings.prometheus is None:
        return
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"metrics.prometheus: {settings.prometheus}, but prometheus-client is not installed; "
            "pip install 'sandbox-rl[prometheus]', or drop it"
        ) from None
    if os.environ.get("RANK", "0") == "0":  # of several processes the first opens it
        host, port = address_of(settings.prometheus)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with _listens(settings), socket.create_server((host, port), family=family):
            pass


@contextmanager
def prometheus_endpoint(settings: MetricsSettings, run: str) -> Iterator[PrometheusEndpoint | None]:
    """`http://ADDRESS/metrics` while open; None where nobody asks for it.

    Raises:
        ConfigError: it cannot be opened there, as `check_prometheus`.
    """
    if settings.prometheus is None:
        yield None
        return
    check_prometheus(settings)
    from prometheus_client import CollectorRegistry, start_http_server

    endpoint, registry = PrometheusEndpoint(run), CollectorRegistry(auto_describe=False)
    registry.register(endpoint)
    host, port = address_of(settings.prometheus)
    with _listens(settings):
        server, thread = start_http_server(port, host, registry=registry)
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _listens(settings: MetricsSettings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        host, port = address_of(settings.prometheus)
        raise ConfigError(
            f"metrics.prometheus: {settings.prometheus}, but {host}:{port} "
            f"cannot be listened on ({error.strerror or error}); name a free port of this machine"
        ) from error


def address_of(where: int | str | None) -> tuple[str, int]:
    """Host and port; a port alone is one of this machine only."""
    host, _, port = str(where).rpartition(":")
    return host.strip("[]") or _HERE, int(port)

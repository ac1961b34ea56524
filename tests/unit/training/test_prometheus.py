"""Metrics for a collector: what is shown, to whom, and that nothing of it outlives the run."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest
from pydantic import ValidationError

from sandbox_rl.errors import ConfigError
from sandbox_rl.training.config import MetricsSettings
from sandbox_rl.training.prometheus import address_of, check_prometheus, prometheus_endpoint
from tests.processes import reserved_port


def read(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
        return [line for line in reply.read().decode().splitlines() if not line.startswith("#")]


def test_the_newest_values_are_there_while_the_run_lasts():
    pytest.importorskip("prometheus_client")
    port = reserved_port()
    with prometheus_endpoint(MetricsSettings(prometheus=port), 'a "run"') as endpoint:
        endpoint.take({"reward/mean": 0.25, "pass@1": 0.5, "loss": None, "grad_norm": float("nan")})
        endpoint.take({"reward/mean": 0.75, "off_policy/age_mean": 1})
        lines = read(port)
    assert lines == [
        'sandbox_rl_off_policy_age_mean{run="a \\"run\\""} 1.0',
        'sandbox_rl_pass_1{run="a \\"run\\""} 0.5',
        'sandbox_rl_reward_mean{run="a \\"run\\""} 0.75',
    ]
    with pytest.raises(urllib.error.URLError):
        read(port)
    with prometheus_endpoint(MetricsSettings(prometheus=port), "next"):
        assert read(port) == [], "the port is free again, and nothing of the run before is seen"


def test_a_port_in_use_is_reported_before_anything_starts():
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"metrics.prometheus: {port}, but 127.0.0.1:{port} cannot be"):
            check_prometheus(MetricsSettings(prometheus=port))


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (9400, ("127.0.0.1", 9400)),
        ("9400", ("127.0.0.1", 9400)),
        ("0.0.0.0:9400", ("0.0.0.0", 9400)),
        ("[::1]:9400", ("::1", 9400)),
    ],
)
def test_a_port_alone_is_of_this_machine_only(given, address):
    assert address_of(MetricsSettings(prometheus=given).prometheus) == address


@pytest.mark.parametrize("given", [0, 65536, "host", ":9400", "host:", "host:http", -1])
def test_what_is_no_address_is_refused(given):
    with pytest.raises(ValidationError, match="expected a port, such as 9400, or HOST:PORT"):
        MetricsSettings(prometheus=given)

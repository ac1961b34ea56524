"""Limits of the engine that are not ours are handed on; what would loosen the isolation is not among them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.docker.options import host_options


def test_further_limits_are_added_and_nothing_else_changes():
    plain = host_options(DockerSettings(), user=1000)
    more = host_options(DockerSettings(more_limits={"cpuset_cpus": "0-3", "blkio_weight": 300}), user=1000)
    assert more == plain | {"cpuset_cpus": "0-3", "blkio_weight": 300}


@pytest.mark.parametrize("runtime", ["", "runsc"])
def test_terminals_are_replaced_where_the_kernel_is_the_machines(runtime):
    settings = DockerSettings(runtime=runtime)
    mounts = host_options(settings, user=1000).get("mounts", [])
    assert [mount["Target"] for mount in mounts] == ([] if runtime else ["/dev/pts"])
    assert "mounts" not in host_options(settings, user=1000, podman_profile="")


@pytest.mark.parametrize(
    "name", ["privileged", "cap_add", "devices", "binds", "network_mode", "mem_limit", "pids_limit"]
)
def test_nothing_that_loosens_the_isolation_can_be_said(name):
    with pytest.raises(ValidationError, match="cpuset_cpus"):
        DockerSettings(more_limits={name: 1})

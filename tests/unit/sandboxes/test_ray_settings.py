"""The ray block of a recipe, without a cluster."""

from __future__ import annotations

import pickle

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from sandbox_rl.errors import FileProblem, SandboxDead, SandboxFault, SandboxFileError, SetupError
from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.sandboxes.config import DockerSettings, RaySettings, SandboxSettings
from sandbox_rl.sandboxes.ray.node import as_value, placed

READ = TypeAdapter(SandboxSettings)


def test_a_stored_block_is_read_again_as_it_was():
    written = {
        "type": "ray",
        "limits": {"memory_mb": 256},
        "node": {"type": "docker", "image": "mine:1"},
        "resources": {"sandboxes": 1},
    }
    settings = READ.validate_python(written)
    assert isinstance(settings, RaySettings)
    assert READ.validate_python(yaml.safe_load(yaml.safe_dump(settings.model_dump(mode="json")))) == settings
    node = settings.on_this_machine()
    assert isinstance(node, DockerSettings)
    assert (node.image, node.limits.memory_mb) == ("mine:1", 256)
    changed = settings.model_copy(update={"limits": SandboxLimits(memory_mb=99)})
    assert changed.on_this_machine().limits.memory_mb == 99


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"node": {"limits": {"memory_mb": 99}}}, "limits belong beside `node`"),
        ({"address": "ray://head:10001"}, "Ray Client is not supported"),
        ({"node": {"type": "ray"}}, "ray"),
        ({"lost_after_s": 0}, "greater than 0"),
    ],
)
def test_blocks_that_are_refused(block, told):
    with pytest.raises(ValidationError, match=told):
        READ.validate_python({"type": "ray", **block})


@pytest.mark.parametrize(
    "error",
    [
        SandboxDead("gone"),
        SandboxFault("broken"),
        SetupError("nothing works"),
        SandboxFileError(FileProblem.MISSING, "/x", "detail"),
        ValueError("a name"),
    ],
)
def test_errors_come_back_as_they_were(error):
    back = placed(pickle.loads(pickle.dumps(as_value(error))), "n1")
    assert type(back) is type(error)
    assert str(error) in str(back)
    if isinstance(back, SandboxFileError):
        assert (back.problem, back.path, back.detail) == (FileProblem.MISSING, "/x", "detail")
    assert ("node n1" in str(back)) == isinstance(error, SandboxFault | SetupError)


def test_what_is_not_of_this_package_is_the_hosts_failure():
    assert type(as_value(OSError("no space"))) is SandboxFault

"""Disks, rights and networks fail in one line, whatever a library makes of it."""

from __future__ import annotations

import errno

import pytest
import torch
import typer

from sandbox_rl import cli
from sandbox_rl.errors import ConfigError, InfraFault, environment_error
from sandbox_rl.training.fields import check_numbers, check_trackers


class ConnectError(Exception):
    """Named as httpx names its own."""


def wrapped(inner: BaseException) -> RuntimeError:
    try:
        try:
            raise inner
        except BaseException as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: no space is left"),
        (OSError(errno.EROFS, "Read-only file system", "/ro/x"), "/ro/x: the file system is read-only"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/home/x"), "/home/x: the disk quota"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: this user may not"),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "no space",
        ),
        (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), "no space"),
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), "no space"),
        (wrapped(ConnectError("name not known")), "network: a server cannot be reached (name not known)"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "network"),
    ],
)
def test_failures_of_the_environment_are_recognised(error, said):
    found = environment_error(error)
    assert said in (found or "")
    assert "\n" not in (found or "")


def test_what_torch_says_of_a_full_disk_is_recognised():
    for entries in (1, 10_000_000):
        with pytest.raises(RuntimeError) as raised:
            torch.save({"a": torch.zeros(entries)}, "/dev/full")
        assert "no space" in (environment_error(raised.value) or ""), str(raised.value)


def test_defects_are_not_taken_for_the_environment():
    assert environment_error(KeyError("x")) is None
    assert environment_error(wrapped(ValueError("space"))) is None


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("seed: 'x', expected a number"), 2, "Error: seed: 'x'"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "Error: /data/x: no space is left"),
        (InfraFault("the engine\nis gone"), 3, "Error: the engine is gone"),
        (ZeroDivisionError("by zero"), 3, "Error: ZeroDivisionError: by zero (a defect of ours"),
    ],
)
def test_whatever_a_command_raises_is_one_line(monkeypatch, capsys, error, code, said):
    failing = typer.Typer()

    @failing.command()
    def command() -> None:
        raise error

    monkeypatch.setattr(cli, "whole_app", lambda: failing)
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == code
    shown = capsys.readouterr().err
    assert shown.startswith(said)
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "block",
    [
        {"learning_rate": -1.0},
        {"learning_rate": float("inf")},
        {"per_device_train_batch_size": 0},
        {"max_steps": 0},
        {"max_steps": -2},
        {"save_steps": 0},
        {"warmup_ratio": 1.5},
        {"loss_type": "mine"},
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_by_name(block):
    (name,) = block
    with pytest.raises(ConfigError, match=rf"grpo\.{name}: .*expected"):
        check_numbers(block)


def test_numbers_that_can_be_meant_pass():
    check_numbers({"learning_rate": 0.0, "max_steps": -1, "warmup_ratio": 0.1, "save_steps": 0.5, "beta": 0})


def test_trackers_must_be_known_and_installed():
    check_trackers(("tensorboard",))
    check_trackers(())
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        check_trackers(("wandbb",))
    with pytest.raises(ConfigError, match="'neptune' is not installed"):
        check_trackers(("neptune",))

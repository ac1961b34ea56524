"""Environments made for sandboxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_rl.errors import ConfigError, SetupError
from sandbox_rl.sandboxes.bwrap import make_layout
from sandbox_rl.sandboxes.python_env import make_python_env


def test_it_is_made_once_and_never_over_something(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# nothing\n")
    assert make_python_env(tmp_path / "env", requirements)
    assert not make_python_env(tmp_path / "env", requirements)
    requirements.write_text("# something else\n")
    with pytest.raises(ConfigError, match="something else"):
        make_python_env(tmp_path / "env", requirements)
    assert list((tmp_path / "env").glob("lib/python3*/site-packages"))


@pytest.mark.parametrize("line", ["reasoning-gym==1.0", "Reasoning_Gym", "sandbox-rl[docker]"])
def test_what_knows_gold_answers_stays_out(tmp_path: Path, line: str) -> None:
    (tmp_path / "r.txt").write_text(f"numpy\n{line}\n")
    with pytest.raises(ConfigError, match="gold answers"):
        make_python_env(tmp_path / "env", tmp_path / "r.txt")
    assert not (tmp_path / "env").exists()


def test_failures_of_pip_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text(f"{tmp_path}/there-is-no-such.whl\n")
    with pytest.raises(SetupError) as caught:
        make_python_env(tmp_path / "env", tmp_path / "r.txt")
    assert "\n" not in str(caught.value)


def test_packages_that_make_tasks_are_hidden_wherever_they_are_shown(tmp_path: Path) -> None:
    site = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    for name in ("reasoning_gym", "numpy", "our_graders"):
        (site / name).mkdir(parents=True)
    (tmp_path / "env" / "bin").mkdir()
    (tmp_path / "env" / "bin" / "python3").symlink_to("/usr/bin/python3")
    layout = make_layout(
        python_env=tmp_path / "env",
        read_only={tmp_path / "env": "/opt/mine"},
        environment={},
        hidden_packages=("our_graders",),
    )
    assert "/opt/site-packages/our_graders" in layout.hidden
    assert {
        "/opt/site-packages/reasoning_gym",
        "/opt/mine/lib/python3.11/site-packages/reasoning_gym",
    } <= set(layout.hidden)
    assert not any("numpy" in place for place in layout.hidden)

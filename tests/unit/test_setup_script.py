"""scripts/setup and the distribution's packages: it waits for the lock, and says what failed and why."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
LOCKED = (
    "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (unattended-upgr)\n"
    "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?"
)
APT = """#!/bin/sh
echo "$*" >> "$PLACE/calls"
if [ -e "$PLACE/locked" ]; then rm "$PLACE/locked"; echo "$LOCKED"; exit 100; fi
for word; do
  if [ "$word" = lost ]; then echo "Reading..."; echo "E: Unable to locate package lost"; exit 100; fi
done
"""


@pytest.fixture
def apt_install(tmp_path):
    """Run `apt_install` as root with an `apt-get` of the test's: its exit code and what it printed."""
    for name, text in {"apt-get": APT, "id": "#!/bin/sh\necho 0\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*packages, wait_s=30):
        source = 'say() { printf "%s\\n" "$*"; }; . "$SCRIPTS/apt.sh"; apt_install "$@"'
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", source, "setup", *packages],
            env={
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "PLACE": str(tmp_path),
                "SCRIPTS": str(SCRIPTS),
                "LOCKED": LOCKED,
                "APT_WAIT_S": str(wait_s),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    return run


def calls(place):
    return [line.split("=false ")[1] for line in (place / "calls").read_text().splitlines()]


def test_what_can_be_installed_is_installed_at_once_and_in_silence(apt_install, tmp_path):
    assert apt_install("one", "two") == (0, "")
    assert calls(tmp_path) == ["install one two"]


def test_the_lock_of_another_is_waited_for(apt_install, tmp_path):
    (tmp_path / "locked").touch()
    code, said = apt_install("one")
    assert code == 0
    (line,) = said.splitlines()
    assert line.startswith("Waiting for the package manager: Could not get lock /var/lib/dpkg/lock-frontend")
    assert calls(tmp_path) == ["install one", "install one"]


def test_a_lock_that_stays_is_the_reason(apt_install, tmp_path):
    (tmp_path / "apt-get").write_text('#!/bin/sh\necho "$LOCKED"\nexit 100\n')
    code, said = apt_install("one", wait_s=0)
    assert code == 1
    (line,) = said.splitlines()
    assert line.startswith("Not installed: one: Could not get lock /var/lib/dpkg/lock-frontend")


def test_the_package_that_failed_is_named_with_the_reason_and_the_others_are_installed(apt_install, tmp_path):
    code, said = apt_install("one", "lost", "two")
    assert (code, said) == (1, "Not installed: lost: Unable to locate package lost\n")
    assert calls(tmp_path)[-3:] == ["install one", "install lost", "install two"]
    assert "update" in calls(tmp_path)


def test_without_rights_that_is_reported(apt_install, tmp_path):
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "sudo").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "sudo").chmod(0o755)
    assert apt_install("one") == (1, "Not installed: one: it takes root or sudo without a password\n")

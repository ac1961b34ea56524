"""Two processes, each with a server on its own card: weights in parts, with files for CUDA handles."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.smoke.test_launch import in_two_processes


def test_each_process_sends_to_its_server_and_all_agree():
    with tempfile.TemporaryDirectory(prefix="own") as directory:  # the path of a unix socket is short
        in_two_processes("own_servers", Path(directory))
        said = [(Path(directory) / f"own-{rank}.txt").read_text().splitlines() for rank in range(2)]
    for rank in range(2):
        assert said[rank][0] == "open [] version 1", "nothing is gathered before requests are frozen"
        assert said[rank][2] == "agreed True version 2", "a publication that fails on all fails for all"
    # The server of one did not take the weights: only who is in charge has it started again.
    assert [lines[1] for lines in said] == ["replaced 1 version 2", "replaced 0 version 2"]

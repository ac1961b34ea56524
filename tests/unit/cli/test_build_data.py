"""`sandbox-rl build-data` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sandbox_rl.cli", "build-data", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_rows_become_tasks_with_files(tmp_path):
    rows = [
        {"prompt": f"Who lives in house {i}?", "answer": f"Ada{i}", "context": f"In house {i} lives Ada{i}."}
        for i in range(30)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = tmp_path / "build.yaml"
    settings.write_text(
        "source: {type: table, path: rows.jsonl, columns: {context: context}}\noutput_dir: built\n"
    )
    done = build(str(settings), "distractors=2", "held_out=0.2")
    assert done.returncode == 0, done.stderr
    built = [
        json.loads(line)
        for name in ("train", "held_out")
        for line in (tmp_path / "built" / f"{name}.jsonl").read_text().splitlines()
    ]
    assert len(built) == 30
    assert all(len(json.loads(row["input_files"])) == 3 for row in built)
    assert "training tasks" in done.stdout


def test_a_wrong_key_is_one_line(tmp_path):
    settings = tmp_path / "build.yaml"
    settings.write_text("source: {type: table, path: rows.jsonl}\noutput_dir: built\ndistracters: 2\n")
    done = build(str(settings))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "build.yaml:3: unknown key 'distracters', did you mean 'distractors'?" in done.stderr

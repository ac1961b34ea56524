"""A warm-up that lies there is taken where it would come out the same, and nowhere else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox_rl.config.load import load_recipe
from sandbox_rl.display import Display, Silent
from sandbox_rl.runs.warmup import WarmupResult, warmup
from tests.smoke.test_data_order import RECIPE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of torch and transformers, as in any program
]
PROMPTS = Path(__file__).parents[2] / "recipes" / "prompts"


def _recipe(folder: Path) -> Path:
    """A folder with a recipe of a small warm-up, beside which the runs lie."""
    shutil.copytree(PROMPTS, folder / "prompts")
    rows = [{"prompt": f"{n} + 1", "answer": str(n + 1)} for n in range(4)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = {"type": "table", "path": "rows.jsonl", "domain": "arithmetic", "scorer": "exact"}
    told = RECIPE | {
        "model": {"path": "tiny", "dtype": "float32"},
        "output_dir": str(folder.parent / "runs"),
        "prompts": ["prompts"],
        "data": {"sources": [source], "held_out": 0},
        "episode": RECIPE["episode"] | {"max_turns": 3, "max_tokens": 1000, "turn_tokens": 100},
        "warmup": {"episodes": 4, "sft": {"per_device_train_batch_size": 4, "max_steps": 1}},
    }
    (folder / "r.yaml").write_text(json.dumps(told))
    return folder


def _warmed(folder: Path, display: Display | None = None) -> WarmupResult:
    return warmup(load_recipe(folder / "r.yaml"), base_dir=folder, display=display or Silent())


def test_two_that_make_the_same_one_at_once_come_to_one_result(tmp_path):
    class Meanwhile(Silent):
        """Another process makes the same one while this one is about to train."""

        other: WarmupResult | None = None

        def progress(self, title, total, done=0):
            if title == "Fine-tuning":
                self.other = _warmed(folder)
            return super().progress(title, total, done)

    folder, meanwhile = _recipe(tmp_path / "first"), Meanwhile()
    result = _warmed(folder, meanwhile)
    assert meanwhile.other is not None
    assert not meanwhile.other.cached
    assert result == replace(meanwhile.other, cached=True)
    assert list((tmp_path / "runs" / "warmup").iterdir()) == [result.path]


def test_it_follows_from_what_files_say_and_not_from_where_they_lie(tmp_path):
    def made(place: str) -> bool:
        """Whether a warm-up is made there, and none is taken."""
        return not _warmed(tmp_path / place).cached

    first = _recipe(tmp_path / "first")
    assert made("first")
    shutil.copytree(first, tmp_path / "second")
    assert not made("second")
    text = (first / "rows.jsonl").read_text()
    (first / "rows.jsonl").write_text(text.replace("3 + 1", "1 + 3"))
    assert made("first")
    (prompt,) = (tmp_path / "second" / "prompts").glob("arithmetic*")
    prompt.write_text(prompt.read_text().replace("answer", "result", 1))
    assert made("second")

"""`eval` with a vLLM server of its own: started once for both modes, and gone afterwards."""

from __future__ import annotations

from pathlib import Path

import yaml

from sandbox_rl.display import Silent
from sandbox_rl.journal import read_journal
from sandbox_rl.runs.evaluate import EvaluateOptions, evaluate
from tests.vllm.conftest import ARGUMENTS, save_tiny

PROMPTS = Path(__file__).parents[2] / "recipes" / "prompts"


def test_both_modes_of_a_served_model(tmp_path, vllm_python):
    """Random weights answer nothing; what counts is that every episode is sampled, judged and counted."""
    source = {"type": "reasoning_gym", "dataset": "chain_sum", "size": 6, "domain": "arithmetic"}
    suite = {
        "name": "served",
        "output_dir": str(tmp_path / "runs"),
        "prompts": [str(PROMPTS)],
        "parts": [{"name": "sums", "source": source}],
        "policy": {"type": "vllm", "python": vllm_python, "arguments": {**ARGUMENTS}},
        "episode": {"max_turns": 2, "max_tokens": 60, "turn_tokens": 16, "timeout_s": 60},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(suite))
    model = save_tiny(tmp_path / "model")
    output = tmp_path / "out"
    asked = EvaluateOptions(str(tmp_path / "s.yaml"), model=str(model), mode="both", output=output)
    results = evaluate(asked, display=Silent()).results
    assert {mode: found.episodes for mode, found in results.modes.items()} == {"sandbox": 6, "plain": 6}
    assert results.unjudged == 0
    records = list(read_journal(output / "journal"))
    assert all(turn["token_ids"] for record in records for turn in record["turns"])
    assert {len(record["turns"]) for record in records if record["mode"] == "plain"} == {1}
    assert (output / "vllm.log").stat().st_size > 0
    again = evaluate(
        EvaluateOptions(str(tmp_path / "s.yaml"), model=str(model), mode="both", output=output, resume=True),
        display=Silent(),
    )
    assert again.results == results

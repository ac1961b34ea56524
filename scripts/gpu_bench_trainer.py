"""Tokens/s of the trainer's update beside a bare forward and backward pass of the same model.

    python scripts/gpu_bench_trainer.py [--scale tiny|full] [--lora] [--json FILE]

Four rows of equal length, all of whose tokens after the prompt count, are trained in micro-batches of one.
Every way runs in a process of its own, and its first update is not counted:

    bare        forward and backward of the sum of log-probs, with TRL's head as it comes
    in process  a whole step of our trainer (loss, gradient, clipping, AdamW) on given rollouts
    served      the same with a server's log-probs, corrected for (token_truncate)

Full is 16,384 tokens in bf16 through the shape of Qwen3-0.6B, with `--lora` through that of Qwen3-4B with
adapters of rank 16; tiny is for CPUs, in float32. Where our trainer reaches less than 0.80 of the bare pass,
what its time went to is printed, by torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_long import GIB
from gpu_common import device_name, scale_of
from transformers import Qwen3Config, Qwen3ForCausalLM

BOUND = 0.80
LONGEST_S = 900.0
ROWS = 4
PROMPT = 16
WAYS = ("bare", "in process", "served")
SHAPES: dict[str, dict[str, Any]] = {
    "full": {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
}
QWEN3_4B = SHAPES["full"] | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
}
RANK = 16
TOKENS = {"full": 16_384, "tiny": 1024}
UPDATES = {"full": 4, "tiny": 4}


def build(scale: str, *, lora: bool = False) -> Any:
    """Random weights, of the shape that takes adapters for `lora`."""
    torch.manual_seed(0)
    shape = QWEN3_4B if lora and scale == "full" else SHAPES[scale]
    config = Qwen3Config(**shape, max_position_embeddings=1 << 15, tie_word_embeddings=True)
    cuda = torch.cuda.is_available()
    torch.set_default_dtype(torch.bfloat16 if cuda else torch.float32)
    with torch.device("cuda" if cuda else "cpu"):  # billions of numbers take minutes on a CPU
        model: Any = Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model


def adapters() -> Any:
    """Of all linear layers, as the trainer adds them."""
    from peft import LoraConfig

    return LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")


def bare(scale: str, *, lora: bool) -> list[float]:
    """Seconds of each pass over all rows."""
    from peft import get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    model = build(scale, lora=lora).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    add_fused_lm_head(model)
    if lora:
        model = get_peft_model(model, adapters())
    vocabulary = SHAPES[scale]["vocab_size"]
    seconds = []
    for _ in range(UPDATES[scale]):
        started = _now()
        for _ in range(ROWS):
            ids = torch.randint(10, vocabulary, (1, TOKENS[scale]), device=model.device)
            labels = ids.clone()
            labels[:, :PROMPT] = -100
            model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs.sum().backward()
        seconds.append(_now() - started)
        model.zero_grad()
    return seconds


def random_rows(scale: str, count: int) -> dict[str, list[Any]]:
    """What a `rollout_func` of TRL's returns, of ids drawn at random."""
    vocabulary = SHAPES[scale]["vocab_size"]
    ids = torch.randint(10, vocabulary, (count, TOKENS[scale])).tolist()
    sampled = [row[PROMPT:] for row in ids]
    return {
        "prompt_ids": [row[:PROMPT] for row in ids],
        "completion_ids": sampled,
        "logprobs": [[-math.log(vocabulary)] * len(row) for row in sampled],
        "env_mask": [[1] * len(row) for row in sampled],
        "signal": [float(index % 2) for index in range(count)],
    }


def reward_of_rows(prompts: Any, signal: list[float], **columns: Any) -> list[float]:
    """What the rows were given."""
    return signal


def update(
    scale: str, directory: Path, *, lora: bool, served: bool, profile: bool = False
) -> tuple[list[float], str]:
    """(seconds of each step, the profiler's table if asked for)."""
    from datasets import Dataset
    from transformers import TrainerCallback

    from sandbox_rl.training.grpo import grpo_config
    from sandbox_rl.training.publication.base import UnsentWeights
    from sandbox_rl.training.tiny import tiny_tokenizer
    from sandbox_rl.training.trainer import SandboxGRPOTrainer

    tokenizer = tiny_tokenizer()
    tokens = TOKENS[scale]
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = _now()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(_now() - self.started)

    trainer = SandboxGRPOTrainer(
        model=build(scale, lora=lora),
        peft_config=adapters() if lora else None,
        args=grpo_config(
            {
                "max_steps": 2 if profile else UPDATES[scale],
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": ROWS,
                "num_generations": 2,
                "save_strategy": "no",
                "learning_rate": 1e-6,
            },
            checkpoints=directory,
            name="bench",
            seed=0,
            estimator="trl",
            max_tokens=tokens - PROMPT,
            dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        ),
        reward_funcs=reward_of_rows,
        rollout_func=lambda prompts, trainer: random_rows(scale, len(prompts)),
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"] * ROWS}),
        processing_class=tokenizer,
        weights=UnsentWeights(served=True) if served else None,  # what sending takes is measured elsewhere
        callbacks=[Clock()],
    )
    trainer.remove_callback(next(type(c) for c in trainer.callback_handler.callbacks if "Printer" in str(c)))
    if not profile:
        trainer.train()
        return seconds, ""
    with torch.profiler.profile() as profiler:
        trainer.train()
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return seconds, str(profiler.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=60))


def measure(way: str, scale: str, lora: bool, profile: bool, results: Any) -> None:
    """In a process of its own: the median step after the first, and the peak of memory."""
    table = ""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(prefix="bench-trainer-") as directory:
        if way == "bare":
            seconds = bare(scale, lora=lora)
        else:
            served = way == "served"
            seconds, table = update(scale, Path(directory), lora=lora, served=served, profile=profile)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    results.put((sorted(seconds[1:])[len(seconds[1:]) // 2], peak, table))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=tuple(SHAPES))
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scale = scale_of(options.scale)
    context = multiprocessing.get_context("spawn")

    def child(way: str, profile: bool = False) -> tuple[float, int, str]:
        results = context.SimpleQueue()
        process = context.Process(target=measure, args=(way, scale, options.lora, profile, results))
        process.start()
        process.join(LONGEST_S)
        if process.exitcode != 0:
            process.kill()
            process.join()
            raise SystemExit(f"{way}: failed, or did not end within {LONGEST_S:g} s")
        found: tuple[float, int, str] = results.get()
        return found

    what = f"{scale}, LoRA" if options.lora else scale
    print(f"{device_name()}, {what}: {ROWS} rows of {TOKENS[scale]} tokens")
    rows: dict[str, dict[str, float]] = {}
    for way in WAYS:
        seconds, peak, _ = child(way)
        rate = ROWS * TOKENS[scale] / seconds
        rows[way] = {"tokens_per_s": rate, "seconds": seconds, "peak_gib": peak / GIB}
        rows[way]["ratio"] = rate / rows["bare"]["tokens_per_s"]
        memory = f"{peak / GIB:6.2f} GiB" if peak else ""
        print(f"{way:12} {rate:10.0f} tokens/s {rows[way]['ratio']:6.2f} of bare {memory}", flush=True)
    profile = child("served", True)[2] if rows["served"]["ratio"] < BOUND else ""
    if profile:
        print(profile)
    if options.json is not None:
        found = {"rows": rows, "bound": BOUND, "ratio": rows["served"]["ratio"], "profile": profile}
        found |= {"scale": scale, "tokens_per_s": rows["served"]["tokens_per_s"]}
        options.json.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

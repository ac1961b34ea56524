"""Peak memory of the forward and backward pass of one update at growing row lengths, beside the estimate.

    python scripts/bench_long.py [--lengths 2048 8192 32768] [--shape least|tiny|0.6b|4b] [--lora]
    python scripts/bench_long.py --lengths 65536 --ways tiles --shape least --vocabulary 16384  # on a CPU

The last is a rehearsal of a row's whole length on a CPU, in about two minutes of processor time: one layer
of width 64, so that its peak is the tiles of the head, and a mask or logits of the whole row would be seen.

Every measurement runs in a process of its own: resident memory on a CPU (the kernel's high-water mark, set
back before the pass), allocated memory on a GPU. Both are above what was held before, so weights are not in.
Ways of a single row, then of two rows of which one is half as long:

    logits   log-probs and entropies from logits (B, T, V) in one piece
    tiles    as training does it: float32 tiles, rows at the left, no mask
    padded   two rows with TRL's head as it comes: padding and a mask of (B, 1, T, T)
    parts    two rows as training does it with update.micro_batch_tokens = T

A way that would not fit into the memory that is free is not run, and its least need is shown. Exit code 1: a
way has failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

GIB = 1 << 30
VOCABULARY = 151_936
SHAPES = {  # hidden, MLP, layers, heads, key-value heads, head size
    "least": (64, 160, 1, 1, 1, 32),
    "tiny": (64, 160, 2, 2, 1, 32),
    "0.6b": (1024, 3072, 28, 16, 8, 128),
    "4b": (2560, 9728, 36, 32, 8, 128),
}
WAYS = {"logits": (1.0,), "tiles": (1.0,), "padded": (1.0, 0.5), "parts": (1.0, 0.5)}
PROMPT = 16


def config_of(shape: str, vocabulary: int) -> Qwen3Config:
    hidden, mlp, layers, heads, kv, head = SHAPES[shape]
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=head,
        max_position_embeddings=1 << 18,
        tie_word_embeddings=True,
    )


def build(shape: str, device: str, *, vocabulary: int, lora: bool) -> Any:
    """The model in bf16 on a GPU, in float32 on a CPU, with activation checkpointing."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model: Any = Qwen3ForCausalLM(config_of(shape, vocabulary))
        torch.set_default_dtype(torch.float32)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
        model.enable_input_require_grads()
    return model.train()


def rows(tokens: int, shares: tuple[float, ...], vocabulary: int, device: str) -> dict[str, torch.Tensor]:
    """Rows as TRL pads them; everything after the prompt is trained."""
    lengths = torch.tensor([int(tokens * share) for share in shares], device=device)
    mask = (torch.arange(tokens, device=device) < lengths[:, None]).long()
    ids = torch.randint(10, vocabulary, mask.shape, device=device) * mask
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :PROMPT] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def update(model: Any, way: str, inputs: dict[str, torch.Tensor]) -> None:
    """Forward and backward of the sum of log-probs."""
    from trl.trainer.utils import add_fused_lm_head

    from sandbox_rl.training.log_probs import align_rows, float32_log_probs
    from sandbox_rl.training.micro_batches import plan_parts

    if way == "logits":
        logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].float()
        log_probs = logits.log_softmax(-1)
        _ = -(log_probs.detach().exp() * log_probs.detach()).sum(-1)
        labels = inputs["labels"][:, 1:]
        (log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels >= 0)).sum().backward()
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if way == "padded":
        add_fused_lm_head(base, outputs=("log_probs", "entropy"))
        model(**inputs, fused_lm_head=True).log_probs.sum().backward()
        return
    align_rows(float32_log_probs(model, temperature=1.0))
    lengths = inputs["attention_mask"].sum(-1).tolist()
    for part in plan_parts(lengths, inputs["input_ids"].size(1)):
        width = max(lengths[row] for row in part)
        model(
            **{name: v[part, :width] for name, v in inputs.items()}, fused_lm_head=True
        ).log_probs.sum().backward()


def measure(way: str, tokens: int, options: argparse.Namespace, results: Any) -> None:
    device = options.device
    model = build(options.shape, device, vocabulary=options.vocabulary, lora=options.lora)
    inputs = rows(tokens, WAYS[way], options.vocabulary, device)
    update(
        model, way, rows(64, WAYS[way], options.vocabulary, device)
    )  # kernels, threads and gradients are there
    start = time.perf_counter()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        update(model, way, inputs)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        update(model, way, inputs)
        peak = _status("VmHWM")
    results.put((peak - before, time.perf_counter() - start))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def estimated(way: str, tokens: int, options: argparse.Namespace) -> int:
    """Bytes beside weights and gradients, by training/memory.py."""
    from trl import GRPOConfig

    from sandbox_rl.training.config import LoraSettings, ModelSettings
    from sandbox_rl.training.memory import estimate_memory, model_shape

    cuda = options.device == "cuda"
    args = GRPOConfig(
        "unused",
        per_device_train_batch_size=len(WAYS[way]),
        num_generations=2,
        generation_batch_size=2,
        use_cpu=not cuda,
        bf16=False,
    )
    found = estimate_memory(
        model_shape(config_of(options.shape, options.vocabulary)),
        args,
        ModelSettings(
            path="x",
            dtype="bfloat16" if cuda else "float32",
            lora=LoraSettings(r=16) if options.lora else None,
        ),
        prompt_tokens=PROMPT,
        completion_tokens=tokens - PROMPT,
        sampled_rows=0,
        micro_batch_tokens=tokens,
    )
    return found.activations + found.workspace


def free_memory(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def least(way: str, tokens: int, vocabulary: int) -> int:
    """Bytes of what the naive ways cannot do without: logits and what is as large; the mask."""
    return 5 * 4 * tokens * vocabulary if way == "logits" else 2 * tokens * tokens if way == "padded" else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="0.6b" if cuda else "tiny")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gpu = options.device == "cuda"
    lengths = options.lengths or ([8192, 16_384, 32_768, 65_536] if gpu else [2048, 8192, 32_768])
    name = torch.cuda.get_device_name() if gpu else f"CPU, {os.cpu_count()} cores"
    named = ("hidden", "MLP", "layers", "heads", "key-value heads", "head size")
    numbers = ", ".join(f"{what} {n}" for what, n in zip(named, SHAPES[options.shape], strict=True))
    lora = " LoRA" if options.lora else ""
    print(f"{options.shape}{lora} ({numbers}), vocabulary {options.vocabulary}, {name}")
    print(f"{'tokens':>8} {'way':>7} {'peak GiB':>9} {'seconds':>8} {'estimated GiB':>14} {'ratio':>6}")
    records, failed = [], False
    context = multiprocessing.get_context("spawn")
    for tokens in lengths:
        for way in options.ways:
            if (need := least(way, tokens, options.vocabulary)) > free_memory(options.device):
                print(f"{tokens:>8} {way:>7}  not run: needs more than {need / GIB:.0f} GiB", flush=True)
                continue
            results = context.SimpleQueue()
            child = context.Process(target=measure, args=(way, tokens, options, results))
            child.start()
            child.join()
            if child.exitcode:
                print(f"{tokens:>8} {way:>7}  failed: exit code {child.exitcode}", flush=True)
                failed = True
                continue
            peak, seconds = results.get()
            record = {"tokens": tokens, "way": way, "peak": peak, "seconds": seconds}
            shown = ""
            if way in ("tiles", "parts"):
                record["estimated"] = estimated(way, tokens, options)
                shown = f"{record['estimated'] / GIB:>14.2f} {peak / record['estimated']:>6.2f}"
            print(f"{tokens:>8} {way:>7} {peak / GIB:>9.2f} {seconds:>8.1f} {shown}", flush=True)
            records.append(record)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"device": name, **vars(options), "json": None, "records": records}, default=str)
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

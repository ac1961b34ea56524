"""Tokens/s of an update whose rows have a prompt in common: computed once, beside once per row.

    python scripts/bench_prefixes.py [--shape smollm2|small] [--rows 8] [--prompt 700] [--completion 80]

Both ways are a forward and backward pass of the sum of log-probs and entropies by the trainer's own head, in
one process, in turns; tokens/s count the tokens of all rows, without padding. Then the largest relative
difference of a gradient (of each parameter, by its norm), beside float32's own floor: the same padded rows,
all at once and one by one.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sandbox_rl.training.log_probs import align_rows, float32_log_probs
from sandbox_rl.training.shared_prefixes import shares_prefixes

SHAPES: dict[str, dict[str, int]] = {
    "smollm2": {  # SmolLM2-135M
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "small": {
        "vocab_size": 4096,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
}
BOUND = 3.0


def rows(options: argparse.Namespace, device: str) -> dict[str, torch.Tensor]:
    """Rows as TRL pads them: one prompt, completions of several lengths around the one asked for."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = SHAPES[options.shape]["vocab_size"]
    lengths = torch.linspace(0.5, 1.5, options.rows).mul(options.completion).round().long()
    width = int(lengths.max())
    prompt = torch.randint(10, vocabulary, (1, options.prompt), generator=generator)
    completions = torch.randint(10, vocabulary, (options.rows, width), generator=generator)
    ids = torch.cat([prompt.expand(options.rows, -1), completions], 1)
    mask = torch.arange(ids.size(1)) < options.prompt + lengths[:, None]
    labels = ids.masked_fill(~mask, -100)
    labels[:, : options.prompt] = -100
    made = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}
    return {name: value.to(device) for name, value in made.items()}


def update(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    """Seconds of a forward and backward pass."""
    start = time.perf_counter()
    output = model(**inputs, fused_lm_head=True)
    (output.log_probs.sum() + 0.1 * output.entropy.sum()).backward()
    if inputs["input_ids"].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Taken out of the model."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest of all parameters: norm of the difference by the norm."""
    return max(float((one[name] - other[name]).norm() / one[name].norm()) for name in one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=700)
    parser.add_argument("--completion", type=int, default=80)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    padded: Any = LlamaForCausalLM(LlamaConfig(**SHAPES[options.shape], tie_word_embeddings=True)).to(device)
    shared = copy.deepcopy(padded)
    for model, share in ((padded, False), (shared, True)):
        base = float32_log_probs(model, temperature=1.0)
        if share and not shares_prefixes(base, low=False, device=torch.device(device)):
            raise SystemExit("this model does not compute packed rows here; the log says why")
        align_rows(base, share_prefixes=share)
        model.train()
    inputs = rows(options, device)
    tokens = int(inputs["attention_mask"].sum())
    update(padded, inputs), update(shared, inputs)  # kernels and threads are there
    by_rows, packed = gradients(padded), gradients(shared)
    for row in range(options.rows):
        update(padded, {name: value[row : row + 1] for name, value in inputs.items()})
    floor, found = difference(by_rows, gradients(padded)), difference(by_rows, packed)
    seconds: dict[str, list[float]] = {"once per row": [], "once": []}
    for _ in range(options.times):
        for name, model in (("once per row", padded), ("once", shared)):
            seconds[name].append(update(model, inputs))
            model.zero_grad()
    rates = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    ratio = rates["once"] / rates["once per row"]
    print(f"{options.rows} rows, a prompt of {options.prompt} tokens, completions of {options.completion}")
    for name, rate in rates.items():
        print(f"the prompt {name:13} {rate:10,.0f} tokens/s")
    print(f"ratio {ratio:.2f}, wanted {BOUND:g}")
    print(f"gradients differ by {found:.1e} of their norm; float32's own floor {floor:.1e}")
    if options.json:
        figures = {"tokens_per_second": rates, "ratio": ratio, "difference": found, "floor": floor}
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

"""LoRA on a vLLM server: adapters folded into the weights and published, or loaded into the server.

    python scripts/bench_adapters.py [--sizes 8M 120M] [--repeats 5] [--json FILE]

Per size and way a server with a model of random weights, which episodes keep asking for short turns: seconds
per update (folding and publishing; or writing the adapter and loading it at run time), the stall that
episodes see, the sampling rate, and how far the server's log-probs are from the trainer's before and after an
update (mean, nats per token). Where vLLM cannot serve adapters, its row says why.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as the command line does, before torch is imported

import aiohttp
import torch
from bench_weights import PROMPT, SHAPES, TURN_TOKENS, Bench, make_model, table, timed, under_load
from gpu_common import device_name
from peft import LoraConfig, get_peft_model

from sandbox_rl.errors import EngineFault, InfraFault, UserError
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.tiny import tiny_tokenizer

RANK = 16


def measure_lora(size: str, dtype: str, repeats: int) -> list[dict[str, Any]]:
    """Merged weights, and an adapter that a server loads at run time: a row each, with a server each."""
    lora = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    base = make_model(size, getattr(torch, dtype))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-weights-") as directory, LoopThread() as loop:
        checkpoint = Path(directory) / "model"
        base.save_pretrained(checkpoint)
        tiny_tokenizer().save_pretrained(checkpoint)
        model: Any = get_peft_model(base, lora).eval()
        if torch.cuda.is_available():
            model.cuda()
        transfer = "ipc" if torch.cuda.is_available() else "shm"
        with_adapters = {"enable-lora": True, "max-lora-rank": RANK, "max-loras": 2}
        for way, extra in (("merged", {}), ("adapter", with_adapters)):
            bench = Bench(loop, checkpoint, transfer, dtype, extra)
            row: dict[str, Any] = {"size": size, "way": way}
            rows.append(row)
            try:
                with loop.entered(bench.policy):
                    measure_adapters(bench, model, Path(directory), repeats, row)
            except (UserError, InfraFault) as error:
                row["error"] = f"not available here: {error}"
            finally:
                bench.weights.close()
    return rows


def measure_adapters(bench: Bench, model: Any, directory: Path, repeats: int, row: dict[str, Any]) -> None:
    """Fill in the row of one way."""
    versions = itertools.count(1)
    newest = bench.server.served_model

    def publish() -> None:
        bench.weights.publish(model, next(versions))

    def load() -> None:
        # Under a name of its own: what is loaded in its place is read again for every request, and a
        # request in flight would change its weights in the middle.
        nonlocal newest
        name = f"adapter-{next(versions)}"
        model.save_pretrained(directory / name, save_embedding_layers=False)
        bench.loop.run(load_adapter(bench, name, directory / name))
        newest = name

    act = publish if row["way"] == "merged" else load
    disturb_adapters(model)
    act()
    row["seconds"], row["stall_s"] = under_load(
        bench, act, repeats, lambda _: bench.complete(newest, TURN_TOKENS)
    )
    row["tokens_per_s"] = rate(bench, newest)
    disturb_adapters(model)
    row["gap_before"] = f"{gap(bench, newest, model):.1e}"
    act()
    row["gap"] = f"{gap(bench, newest, model):.1e}"


def disturb_adapters(model: Any) -> None:
    """As updates would: fresh adapters are zero, which every way would get right."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)


def gap(bench: Bench, name: str, model: Any) -> float:
    """Mean difference of the server's log-probs from the trainer's, nats per token."""
    choice = bench.loop.run(bench.complete(name, 64))
    sampled = torch.tensor(choice["token_ids"], device=model.device)
    prompt = torch.tensor(PROMPT, device=model.device)
    with torch.no_grad():
        logits = model(torch.cat([prompt, sampled])[None]).logits[0, len(prompt) - 1 : -1]
    ours = logits.float().log_softmax(-1).gather(1, sampled[:, None])[:, 0].cpu()
    return float((ours - torch.tensor(choice["logprobs"]["token_logprobs"])).abs().mean())


async def load_adapter(bench: Bench, name: str, path: Path) -> None:
    """The route answers in plain words.

    Raises:
        EngineFault: it refused; the words.
    """
    (server,) = bench.server.servers
    connector = aiohttp.UnixConnector(server.address.socket or "")
    async with aiohttp.ClientSession(connector=connector) as session:
        body = {"lora_name": name, "lora_path": str(path)}
        async with session.post(f"{server.address.url}/v1/load_lora_adapter", json=body) as response:
            if response.status != 200:
                raise EngineFault(f"/v1/load_lora_adapter: {(await response.text())[:300]}")


def rate(bench: Bench, model: str) -> float:
    """Sampled tokens/s of 8 requests at once."""

    async def requests() -> None:
        await asyncio.gather(*(bench.complete(model, 64) for _ in range(8)))

    bench.loop.run(requests())
    return 8 * 64 / timed(lambda: bench.loop.run(requests()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["8M", "120M"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    print(f"{device_name()}, {dtype}, {chosen.repeats} repeats, medians", flush=True)
    rows = [row for size in chosen.sizes for row in measure_lora(size, dtype, chosen.repeats)]
    print(table(rows))
    if chosen.json is not None:
        result = {"device": device_name(), "dtype": dtype, "command": sys.argv, "rows": rows}
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

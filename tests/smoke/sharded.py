"""What one of two processes does in tests/smoke/test_launch.py: a model sharded by FSDP2, on CPUs by gloo."""

from __future__ import annotations

import copy
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from sandbox_rl.chat.turn_ends import TurnEnds
from sandbox_rl.training.export import export_model, whole_weights
from sandbox_rl.training.log_probs import align_rows, float32_log_probs
from sandbox_rl.training.micro_batches import largest_of, plan_parts
from sandbox_rl.training.publication.merge import checkpoint_tensors
from tests.smoke.support import CARD, TOKENIZER, tiny_model

LENGTHS = ((40, 38, 10), (12, 11, 9))
"""Of the rows of each rank: the first needs three parts of 40 tokens, the second one."""
BUDGET = 40


def rows(rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    lengths = torch.tensor(LENGTHS[rank])
    column = torch.arange(max(LENGTHS[rank]) + 2)
    mask = ((column >= 2) & (column < lengths[:, None] + 2)).long()
    ids = torch.randint(10, 200, mask.shape, generator=generator) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(column[None] < 6, -100) * mask - 100 * (1 - mask),
    }


def taken(inputs: dict[str, torch.Tensor], chosen: list[int]) -> dict[str, torch.Tensor]:
    return {name: value[chosen] for name, value in inputs.items()}


def main() -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=240))
    try:
        check(distributed.get_rank(), distributed.get_world_size(), Path(sys.argv[1]))
    finally:
        distributed.destroy_process_group()


def check(rank: int, world: int, directory: Path) -> None:
    whole = tiny_model(TOKENIZER, seed=0)
    model = copy.deepcopy(whole)
    align_rows(float32_log_probs(whole, temperature=1.0))
    align_rows(float32_log_probs(model, temperature=1.0), token_budget=BUDGET)
    mesh = init_device_mesh("cpu", (world,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

    inputs = rows(rank)
    expected = whole(**inputs, fused_lm_head=True).log_probs.detach()
    with torch.no_grad():
        found = model(**inputs, fused_lm_head=True).log_probs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    for each in range(world):
        whole(**rows(each), fused_lm_head=True).log_probs.sum().backward()
    lengths = list(LENGTHS[rank])
    bounds = largest_of(sorted(lengths, reverse=True), torch.device("cpu"))
    parts = plan_parts(lengths, BUDGET, bounds=bounds)
    assert len(parts) == 3, parts
    for part in parts:
        model(**taken(inputs, part), fused_lm_head=True).log_probs.sum().backward()
    of_whole = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gathered = parameter.grad.full_tensor() * world  # the mean over processes
        torch.testing.assert_close(gathered, of_whole[name].grad, atol=1e-4, rtol=1e-4, msg=name)

    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    assert held < 0.6 * sum(parameter.numel() for parameter in whole.parameters())
    published = {name: tensor.clone() for name, tensor in checkpoint_tensors(model)}
    assert published.keys() == of_whole.keys()
    assert all(torch.equal(tensor, of_whole[name]) for name, tensor in published.items())
    gathered_weights = whole_weights(model, dtype=torch.float32, keep=rank == 0)
    if rank == 0:
        exported = export_model(
            model,
            TOKENIZER,
            directory,
            ends=TurnEnds(TOKENIZER.eos_token_id),
            dtype=torch.float32,
            **CARD,
            weights=gathered_weights,
        )
        loaded = dict(AutoModelForCausalLM.from_pretrained(exported).named_parameters())
        assert loaded.keys() == of_whole.keys()
        assert all(torch.equal(tensor, of_whole[name]) for name, tensor in loaded.items())
    else:
        assert gathered_weights == {}
    print(f"rank {rank}: as unsharded")


if __name__ == "__main__":
    main()

"""The memory estimate against numbers by hand and against what torch really allocates."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig
from trl import GRPOConfig

from sandbox_rl.training.config import LoraSettings, ModelSettings
from sandbox_rl.training.memory import (
    GIB,
    OVERHEAD,
    TILES_TORCH,
    estimate_memory,
    layer_per_token,
    model_shape,
)
from sandbox_rl.training.models import stored_dtype
from sandbox_rl.training.precision import low_residual
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.support import TOKENIZER, given_reward, make_rollout, rows_of
from tests.unit.shapes import QWEN3_4B

SMALL = Qwen3Config(
    vocab_size=100,
    hidden_size=16,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=True,
)
LAYER = 16 * 28 + (32 + 16) * 16 + 4 * 40 * 4
"""Bytes that a layer keeps of a token in float32."""
LINEAR = 3 * ((16 + 32) + 2 * (16 + 16) + (32 + 16) + 3 * (16 + 40))
"""q, k and v, o, and the MLP's three, of three layers."""


def estimate(
    tmp_path,
    *,
    lora=None,
    dtype="float32",
    shards=1,
    rows=0,
    parts=None,
    card=None,
    served=False,
    offloaded=False,
    **fields,
):
    args = GRPOConfig(
        str(tmp_path),
        **{"per_device_train_batch_size": 4, "num_generations": 4, "use_cpu": True, "bf16": False, **fields},
    )
    return estimate_memory(
        model_shape(SMALL),
        args,
        ModelSettings(path="x", dtype=dtype, lora=lora),
        prompt_tokens=10,
        completion_tokens=30,
        sampled_rows=rows,
        stored_dtype=torch.bfloat16,
        shards=shards,
        micro_batch_tokens=parts,
        card=card,
        served=served,
        offloaded=offloaded,
    )


def test_the_shape_of_a_model_is_counted():
    shape = model_shape(SMALL)
    assert shape.parameters == sum(p.numel() for p in Qwen3ForCausalLM(SMALL).parameters())
    assert (shape.linear_widths, shape.query_width, shape.kv_width) == (LINEAR, 32, 16)


def test_a_mixture_of_experts_computes_with_the_active_ones():
    config = Qwen3MoeConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
    )
    assert model_shape(config).mlp_width == 24


def test_full_training_by_hand(tmp_path):
    parameters = model_shape(SMALL).parameters
    found = estimate(tmp_path, gradient_checkpointing=False, rows=5)
    assert (found.weights, found.gradients, found.optimizer) == (
        4 * parameters,
        4 * parameters,
        8 * parameters,
    )
    assert found.activations == 4 * 40 * 3 * LAYER
    assert found.kv_cache == 5 * 40 * 2 * 3 * 16 * 4
    head, hidden = 100 * 16, 2 * 160 * 16
    assert found.workspace == 4 * (160 * (32_768 + (TILES_TORCH - 1) * 100) + 100 * 16 + hidden + head)


def test_checkpointing_keeps_inputs_and_one_layer(tmp_path):
    assert estimate(tmp_path, gradient_checkpointing=True).activations == 4 * 40 * 3 * 16 * 4


def test_the_head_s_tiles_and_the_layer_gone_through_backwards_are_not_there_together(tmp_path):
    long = {"per_device_train_batch_size": 1 << 20, "num_generations": 4}
    few, many = (estimate(tmp_path, gradient_checkpointing=True, **fields) for fields in ({}, long))
    assert few.workspace > 4 * 40 * (LAYER + 3 * 40 * 4)
    assert many.workspace == (1 << 20) * 40 * (LAYER + 3 * 40 * 4)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("stored", "autocast"), [("float32", False), ("float32", True), ("bfloat16", True)])
def test_a_layer_keeps_what_autograd_saves(tmp_path, lora, stored, autocast):
    """The difference between three layers and two, weights left out; the estimate is a little larger."""
    from peft import get_peft_model

    tokens = 2048

    def saved(layers):
        config = copy.deepcopy(SMALL)
        config.num_hidden_layers = layers
        config.layer_types = ["full_attention"] * layers
        model = Qwen3ForCausalLM(config).to(getattr(torch, stored))
        if autocast:
            low_residual(model, torch.bfloat16)
        if lora:
            model = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear"))
        storages = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
        found = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in storages:
                found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address returns
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            model(torch.zeros((1, tokens), dtype=torch.long), logits_to_keep=1)
        return sum(size for size, _ in found.values())

    shape = model_shape(SMALL)
    compute = 2 if autocast else 4
    estimated = tokens * layer_per_token(shape, compute, getattr(torch, stored).itemsize)
    kept = saved(3) - saved(2)
    assert 0.95 <= estimated / kept <= 1.25


def test_published_weights_are_in_the_memory_of_a_cpu_and_in_no_card_s(tmp_path):
    """One copy is kept for a server that is started again, and a new one is beside it for a while."""
    alone, served = estimate(tmp_path), estimate(tmp_path, served=True)
    assert served.published == 4 * model_shape(SMALL).parameters
    assert served.training == alone.training + served.published
    assert served.sampling == alone.sampling + 2 * served.published
    on_card = estimate(tmp_path, served=True, card=True)
    assert on_card.published == 0
    assert on_card.workspace <= alone.workspace, "cards compute the head in place"


def test_an_optimizer_in_the_host_s_memory_takes_its_weights_along(tmp_path):
    parameters = model_shape(SMALL).parameters
    found = estimate(tmp_path, dtype="bfloat16", shards=2, offloaded=True)
    assert (found.weights, found.gradients, found.optimizer) == (parameters, parameters, 0)


def test_parts_bound_what_is_held_at_once(tmp_path):
    whole = estimate(tmp_path)
    assert estimate(tmp_path, parts=80).activations * 2 == whole.activations
    assert estimate(tmp_path, parts=10).activations * 4 == whole.activations, "a row is never divided"
    assert estimate(tmp_path, parts=10_000).activations == whole.activations


def test_4b_with_lora_fits_65k_tokens_into_80_gb(tmp_path):
    """Qwen3-4B's shape, one row of 65,536 tokens, bf16: what docs/long_episodes.md says."""
    shape = model_shape(QWEN3_4B)
    args = GRPOConfig(
        str(tmp_path), per_device_train_batch_size=2, num_generations=2, bf16=True, use_cpu=True
    )
    args.use_cpu = False  # which the constructor refuses where there is no GPU
    args.optim = "adamw_8bit"
    found = {
        name: estimate_memory(
            shape,
            args,
            ModelSettings(path="x", dtype="bfloat16", lora=lora),
            prompt_tokens=1_000,
            completion_tokens=64_536,
            sampled_rows=0,
            micro_batch_tokens=65_536,
        )
        for name, lora in (("lora", LoraSettings(r=16)), ("full", None))
    }
    assert 35 < found["lora"].training / GIB < 45
    assert 70 < found["full"].training / GIB < 80


def test_auto_computes_in_the_checkpoint_s_type(tmp_path):
    assert estimate(tmp_path, dtype="auto", rows=5).kv_cache * 2 == estimate(tmp_path, rows=5).kv_cache


def test_what_is_trained_is_float32_and_frozen_weights_are_not(tmp_path):
    parameters = model_shape(SMALL).parameters
    full = estimate(tmp_path, dtype="bfloat16")
    assert (full.weights, full.gradients, full.optimizer) == (
        4 * parameters,
        4 * parameters,
        8 * parameters,
    )
    with_reference = estimate(tmp_path, dtype="bfloat16", beta=0.1)
    assert with_reference.weights == 2 * full.weights


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once while it is entered."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()

    def hold(self, value):
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self.seen:
            self.seen.add(key)
            self.now += (size := storage.nbytes())
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, key, size)

    def free(self, key, size):
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        torch.utils._pytree.tree_map(self.hold, out)
        return out


@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "kept"])
@pytest.mark.parametrize(("dtype", "lora"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_the_estimate_is_what_an_update_allocates(tmp_path, dtype, lora, checkpointing):
    """Two updates of two micro-batches, of a model whose weights, activations and logits all count."""
    config = Qwen3Config(
        vocab_size=len(TOKENIZER),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        tie_word_embeddings=True,
    )
    held = getattr(torch, dtype) if lora else torch.float32
    rows = [make_rollout("a", float(i % 2), seed=0, turns=4, length=16) for i in range(4)]
    torch.manual_seed(0)
    with Peak() as peak:
        model = Qwen3ForCausalLM(config).to(held)
        trainer = SandboxGRPOTrainer(
            model=model,
            args=GRPOConfig(
                str(tmp_path),
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                num_generations=4,
                max_steps=2,
                use_cpu=True,
                bf16=dtype == "bfloat16",
                activation_checkpointing=checkpointing,
                report_to="none",
                save_strategy="no",
            ),
            reward_funcs=given_reward,
            rollout_func=lambda prompts, _: rows_of(rows),
            train_dataset=Dataset.from_dict({"prompt": ["a"]}),
            processing_class=TOKENIZER,
            peft_config=LoraConfig(r=8, target_modules="all-linear") if lora else None,
            share_prefixes=False,  # the estimate is for rows with nothing in common; these are alike
        )
        trainer.train()
    longest = max(len(r.trajectory.prompt_ids) + len(r.trajectory.completion_ids) for r in rows)
    found = estimate_memory(
        model_shape(config),
        trainer.args,
        ModelSettings(path="x", dtype=dtype, lora=LoraSettings(r=8) if lora else None),
        prompt_tokens=8,
        completion_tokens=longest - 8,
        sampled_rows=0,
    )
    print(f"{found}; beside {peak.peak / (1 << 20):.1f} MiB")
    assert 0.9 <= found.training / OVERHEAD / peak.peak <= 1.1


def test_lora_trains_its_own_weights_only(tmp_path):
    found = estimate(tmp_path, lora=LoraSettings(r=2), dtype="bfloat16")
    assert found.gradients == 4 * 2 * LINEAR
    assert found.optimizer == 2 * found.gradients
    assert found.weights == 2 * model_shape(SMALL).parameters + found.gradients


def test_peft_makes_as_many_adapter_weights(tmp_path):
    from peft import get_peft_model

    model = get_peft_model(Qwen3ForCausalLM(SMALL), LoraConfig(r=2, target_modules="all-linear"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimate(tmp_path, lora=LoraSettings(r=2)).gradients == 4 * trained


@pytest.mark.parametrize(("name", "share"), [("sgd", 0), ("adamw_8bit", 2), ("adamw_torch", 8)])
def test_optimizers_keep_what_they_keep(tmp_path, name, share):
    assert estimate(tmp_path, optim=name).optimizer == share * model_shape(SMALL).parameters


def test_shards_divide_what_is_held(tmp_path):
    whole, half = estimate(tmp_path), estimate(tmp_path, shards=2)
    assert (half.weights, half.optimizer) == (whole.weights // 2, whole.optimizer // 2)
    gathered = 4 * 2 * model_shape(SMALL).linear_weights // 3 + (4 + 4) * 100 * 16
    assert half.activations == whole.activations + gathered


def test_the_larger_of_training_and_sampling_decides(tmp_path):
    assert estimate(tmp_path, rows=1).peak == estimate(tmp_path, rows=1).training
    many = estimate(tmp_path, rows=10_000)
    assert many.peak == many.sampling
    assert "estimated" in str(many)
    assert "kv cache" in str(many)


def test_adamw_s_state_is_what_torch_allocates(tmp_path):
    model = Qwen3ForCausalLM(SMALL)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros((1, 4), dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    held = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if v.dim())
    assert estimate(tmp_path).optimizer == held


def test_the_stored_type_of_a_configuration():
    assert stored_dtype(Qwen3Config(dtype="bfloat16")) is torch.bfloat16
    assert stored_dtype(Qwen3Config()) is torch.float32

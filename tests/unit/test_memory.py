"""The memory estimate against numbers by hand and against what torch really allocates."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig
from trl import GRPOConfig

from sandbox_rl.training.config import LoraSettings, ModelSettings
from sandbox_rl.training.memory import estimate_memory, model_shape, stored_dtype

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
LINEAR = 3 * ((16 + 32) + 2 * (16 + 16) + (32 + 16) + 3 * (16 + 40))
"""q, k and v, o, and the MLP's three, of three layers."""


def estimate(tmp_path, *, lora=None, dtype="float32", shards=1, rows=0, **fields):
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
    layer = 4 * 16 + 2 * 32 + 2 * 16 + 4 * 40
    assert found.activations == 4 * 40 * 3 * layer * 4
    assert found.kv_cache == 5 * 40 * 2 * 3 * 16 * 4
    assert found.logits == 2 * 4 * 160 * 100


def test_checkpointing_keeps_inputs_and_one_layer(tmp_path):
    layer = 4 * 16 + 2 * 32 + 2 * 16 + 4 * 40
    assert estimate(tmp_path, gradient_checkpointing=True).activations == 4 * 40 * (3 * 16 + layer) * 4


def test_auto_keeps_the_checkpoint_s_type(tmp_path):
    assert estimate(tmp_path, dtype="auto").weights * 2 == estimate(tmp_path).weights


def test_lora_trains_its_own_weights_only(tmp_path):
    found = estimate(tmp_path, lora=LoraSettings(r=2), dtype="bfloat16")
    assert found.gradients == 4 * 2 * LINEAR
    assert found.optimizer == 2 * found.gradients
    assert found.weights == 2 * model_shape(SMALL).parameters + found.gradients


def test_peft_makes_as_many_adapter_weights(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(Qwen3ForCausalLM(SMALL), LoraConfig(r=2, target_modules="all-linear"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimate(tmp_path, lora=LoraSettings(r=2)).gradients == 4 * trained


@pytest.mark.parametrize(("name", "share"), [("sgd", 0), ("adamw_8bit", 2), ("adamw_torch", 8)])
def test_optimizers_keep_what_they_keep(tmp_path, name, share):
    assert estimate(tmp_path, optim=name).optimizer == share * model_shape(SMALL).parameters


def test_shards_divide_what_is_held(tmp_path):
    whole, half = estimate(tmp_path), estimate(tmp_path, shards=2)
    assert (half.weights, half.optimizer) == (whole.weights // 2, whole.optimizer // 2)
    assert half.activations == whole.activations


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

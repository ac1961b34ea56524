"""Architectures that transformers generates with: what is sampled here is what the loss computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from sandbox_rl.errors import ModelError
from sandbox_rl.training.probe import trainer_scores
from sandbox_rl.training.sampler_check import LARGEST_GAP, check_rope, check_sampler, sampler_gap

BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 32}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
STATE = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 16, "eos_token_id": 1}
NEMOTRON = {
    "layers_block_type": ["mamba", "attention", "moe", "mamba"],
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
}
AGREE: dict[str, tuple[str, dict[str, Any]]] = {
    "LFM2": ("lfm2", BASE | {"layer_types": ["conv", "full_attention"] * 2}),
    "Qwen3-Next": ("qwen3_next", BASE | SHARED | LINEAR),
    "Qwen3.5": ("qwen3_5_text", BASE | LINEAR),
    "Qwen3.5-MoE": ("qwen3_5_moe_text", BASE | SHARED | LINEAR),
    "Falcon-H1": ("falcon_h1", BASE | MAMBA | {"mamba_d_ssm": 128}),
    "Granite-4-H": (
        "granitemoehybrid",
        BASE | MAMBA | MIXTURE | {"shared_intermediate_size": 64, "layer_types": ["mamba", "attention"] * 2},
    ),
    "Bamba": ("bamba", BASE | MAMBA | {"attn_layer_indices": [1, 3]}),
    "Nemotron-H": (
        "nemotron_h",
        {name: value for name, value in BASE.items() if name != "num_hidden_layers"} | NEMOTRON,
    ),
    "Mamba": ("mamba", STATE),
    "Mamba2": ("mamba2", STATE | {"num_heads": 8, "head_dim": 16, "n_groups": 1}),
    "Jamba": (
        "jamba",
        BASE | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False},
    ),
    "Gemma-2": ("gemma2", BASE | {"sliding_window": 16, "attn_logit_softcapping": 5.0}),
    "Gemma-3": ("gemma3_text", BASE | {"sliding_window": 16}),
    "gpt-oss": ("gpt_oss", BASE | MIXTURE | {"sliding_window": 16}),
    "Mixtral": ("mixtral", BASE | MIXTURE),
    "Qwen3-MoE": ("qwen3_moe", BASE | EXPERTS),
    "Qwen3": ("qwen3", BASE),
    "Llama": ("llama", BASE),
}
DIFFER: dict[str, tuple[str, dict[str, Any]]] = {
    "RecurrentGemma": (
        "recurrent_gemma",
        BASE
        | {
            "lru_width": 64,
            "attention_window_size": 16,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    "RWKV": ("rwkv", {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2}),
    "MiniMax": ("minimax", BASE | MIXTURE | {"block_size": 16}),
}


def made(kind: str, fields: dict[str, Any]) -> Any:
    """A model of random weights so large that tokens matter to each other."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"transformers has no {kind}")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields)).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", AGREE)
def test_what_is_sampled_is_what_the_loss_computes(name):
    """Turns of three lengths after prompts of three lengths: padding, and rows that leave the batch."""
    assert sampler_gap(made(*AGREE[name]), torch.float32) < LARGEST_GAP / 10


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", DIFFER)
def test_what_cannot_agree_is_refused_in_one_line(name):
    with pytest.raises(ModelError, match=r"^model.path: 'here' \(\w+\).*serve it.*or train another") as error:
        check_sampler(made(*DIFFER[name]), torch.float32, path="here", largest=0.1)
    assert "\n" not in str(error.value)


def test_the_check_leaves_the_model_as_it_was():
    model = made(*AGREE["Qwen3"]).train()
    model.model.norm.eval()  # as frozen parts are
    before = [module.training for module in model.modules()]
    check_sampler(model, torch.float32, path="here", largest=0.1)
    trainer_scores(model, [1, 2, 3])
    assert [module.training for module in model.modules()] == before
    assert "forward" not in model.__dict__


def rope(kind: str, original: int | None = None, **fields: Any) -> PretrainedConfig:
    scaling = {"rope_type": kind, "factor": 2.0, "rope_theta": 10_000.0}
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    return CONFIG_MAPPING["llama"](**(BASE | {"rope_parameters": scaling} | fields))


def test_rotary_embeddings_that_change_within_an_episode_are_refused():
    """Dynamic NTK: 0.07 to 10 nats between a turn and the finished episode."""
    check_rope(rope("dynamic"), longest=256, path="x")
    check_rope(rope("dynamic", original=128), longest=128, path="x")
    check_rope(rope("yarn", original=64), longest=256, path="x")
    check_rope(CONFIG_MAPPING["llama"](**BASE), longest=10_000, path="x")
    with pytest.raises(
        ModelError, match=r"type 'dynamic'.*beyond 64 tokens.*may have 65; lower episode.max_"
    ):
        check_rope(rope("dynamic", original=64), longest=65, path="x")
    with pytest.raises(ModelError, match="beyond 256 tokens, and episodes may have 300"):
        check_rope(rope("dynamic"), longest=300, path="x")

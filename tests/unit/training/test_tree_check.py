"""Packed rows of the asynchronous trainer compute what the model does, or the model is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from trl.experimental.async_grpo import packing
from trl.experimental.async_grpo.packing import TREE_ATTENTION

from sandbox_rl.errors import ModelError
from sandbox_rl.training.probe import plain_forward
from sandbox_rl.training.tree_attention import register_tree_attention, tree_attention
from sandbox_rl.training.tree_check import (
    check_packing,
    check_tree_config,
    packed_log_probs,
    packing_gap,
    plain_log_probs,
)
from tests.unit.training.test_sampler_check import AGREE, BASE, made


@pytest.fixture(autouse=True)
def registered():
    packing.register_tree_attention()
    register_tree_attention()


def packed(name, **fields):
    kind, given = AGREE[name]
    if name == "Gemma-2":
        fields = {"attn_logit_softcapping": 0.1} | fields
    model = made(kind, given | fields)
    for parameter in (p for n, p in model.named_parameters() if n.endswith("sinks")):
        torch.nn.init.normal_(parameter)
    model.set_attn_implementation(TREE_ATTENTION)
    return model


@pytest.mark.parametrize("name", ["Gemma-2", "Gemma-3", "gpt-oss", "Mixtral", "Qwen3-MoE", "Qwen3", "Llama"])
def test_packed_rows_are_the_plain_ones(name):
    """Windows shorter than the rows, softcaps small enough to bend scores, sinks."""
    window = {"sliding_window": 4} if "sliding_window" in AGREE[name][1] else {}
    model = packed(name, **window)
    assert packing_gap(model, torch.float32) < 1e-4
    check_tree_config(model.config, path="here", cuda=False)


@pytest.mark.parametrize("name", ["Gemma-2", "gpt-oss"])
def test_the_comparison_sees_what_is_left_out(name, monkeypatch):
    """Teeth: softcap and sinks swallowed, as by an attention that takes any argument."""
    model = packed(name)

    def swallowing(*args, softcap=None, s_aux=None, **kwargs):
        return tree_attention(*args, **kwargs)

    monkeypatch.setitem(packing.AttentionInterface._global_mapping, TREE_ATTENTION, swallowing)
    with pytest.raises(ModelError, match=r"packed and plain rows differ by [\d.]+ nats.*set mode: sync"):
        check_packing(model, low=False, path="here")


@pytest.mark.parametrize("name", ["Gemma-2", "gpt-oss"])
def test_gradients_are_those_of_plain_rows(name):
    model = packed(name, num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    rows = [[*range(10, 20), 5, 6, 7], [*range(10, 20), 8]]
    gradients = []
    for way in ("packed", "plain"):
        again = copy.deepcopy(model).eval()
        if way == "packed":
            packed_log_probs(again, rows).sum().backward()
        else:
            with plain_forward(again), torch.enable_grad():
                sum(plain_log_probs(again, row).sum() for row in rows).backward()
        gradients.append({n: p.grad for n, p in again.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][parameter], gradient, atol=1e-3, rtol=1e-3, msg=parameter)


ARGUMENTS = [
    ({"dropout": 0.1}, "dropout: 0.1"),
    ({"position_bias": torch.zeros(1, 2, 3, 3)}, "position_bias"),
    ({"sinks": torch.zeros(2)}, "sinks"),
    ({"head_mask": torch.ones(2)}, "head_mask"),
    ({"block_indices": torch.ones(2)}, "block_indices"),
    ({"output_attentions": True}, "output_attentions: True"),
    ({"is_causal": False}, "is_causal: false"),
    ({"some_new_thing": 3}, "some_new_thing: 3"),
]
NEUTRAL = {
    "dropout": 0.0,
    "position_bias": None,
    "sinks": None,
    "is_causal": True,
    "output_attentions": False,
}


def attend(mask=None, **given):
    q = torch.randn(1, 2, 3, 4)
    ends = torch.tensor([0, 3], dtype=torch.int32)
    return tree_attention(
        torch.nn.Identity(),
        q,
        q,
        q,
        mask,
        tree_kv_index=torch.arange(3),
        tree_cu_seqlens_q=ends,
        tree_cu_seqlens_k=ends,
        tree_max_seqlen_q=3,
        tree_max_seqlen_k=3,
        **given,
    )[0]


@pytest.mark.parametrize(("given", "shown"), ARGUMENTS, ids=[shown for _, shown in ARGUMENTS])
def test_an_argument_that_is_not_implemented_is_refused(given, shown):
    assert attend(**NEUTRAL).shape == (1, 3, 2, 4)
    with pytest.raises(ModelError, match=f"^Identity asks its attention for {shown}, .*set mode: sync"):
        attend(**given)


def test_a_mask_is_refused():
    with pytest.raises(ModelError, match="attention_mask"):
        attend(torch.zeros(1, 1, 3, 3))


def config_of(name, **fields):
    kind, given = AGREE[name]
    return CONFIG_MAPPING[kind](**given | fields)


REFUSED = [
    (config_of("Gemma-2"), True, "attn_logit_softcapping: 5.0.* on CUDA"),
    (config_of("gpt-oss"), True, "attention sinks.* on CUDA"),
    (config_of("Qwen3", attention_dropout=0.1), False, "attention_dropout: 0.1"),
    (config_of("LFM2"), False, "layers of type 'conv'"),
    (config_of("Qwen3-Next"), False, "layers of type 'linear_attention'"),
    (config_of("Mamba"), False, "layers of type 'linear_attention'"),
    (config_of("Falcon-H1"), False, "layers of type|a state that layers carry"),
    (config_of("Bamba"), False, "layers of type|a state that layers carry"),
]


@pytest.mark.parametrize(("config", "cuda", "shown"), REFUSED, ids=[shown[:30] for _, _, shown in REFUSED])
def test_the_dry_run_refuses_by_the_configuration(config, cuda, shown):
    with pytest.raises(ModelError, match=f"^model.path: 'here' has ({shown}).*set mode: sync") as error:
        check_tree_config(config, path="here", cuda=cuda)
    assert "\n" not in str(error.value)


def test_dropout_is_refused_by_a_loaded_model():
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["qwen3"](**BASE, attention_dropout=0.2))
    model.set_attn_implementation(TREE_ATTENTION)
    with pytest.raises(ModelError, match=r"dropout: 0.2"):
        check_packing(model, low=False, path="here")

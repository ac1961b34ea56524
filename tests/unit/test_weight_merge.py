"""Adapters folded into what is published, without touching what is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sandbox_rl.errors import ModelError
from sandbox_rl.training.publication.merge import checkpoint_tensors
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer


def with_lora(dtype=torch.float32, **fields):
    base = tiny_model(tiny_tokenizer()).to(dtype)
    fields = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | fields
    names = [name for name, _ in base.named_parameters()]
    model = get_peft_model(base, LoraConfig(**fields))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:  # B starts at zero, which would hide a missing merge
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model, names


def test_names_and_values_are_those_of_the_merged_model():
    model, names = with_lora()
    found = dict(checkpoint_tensors(model))
    assert list(found) == names
    expected = copy.deepcopy(model).merge_and_unload().state_dict()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in names)
    base = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert not torch.equal(found["model.layers.0.self_attn.q_proj.weight"], base)


def test_a_publication_leaves_a_bfloat16_base_as_it_was():
    """Merging and unmerging in place does not: it is why adapters are merged into a copy."""
    model, _ = with_lora(torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        merged = {name: tensor.dtype for name, tensor in checkpoint_tensors(model)}
    assert merged["model.layers.0.mlp.up_proj.weight"] == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.merge_adapter()
    model.unmerge_adapter()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modules_that_are_trained_whole_come_under_their_own_name():
    model, names = with_lora(target_modules=["q_proj"], modules_to_save=["norm"])
    trained = model.get_base_model().model.norm.modules_to_save["default"].weight
    with torch.no_grad():
        trained.fill_(7.0)
    found = dict(checkpoint_tensors(model))
    assert sorted(found) == sorted(names)
    assert torch.equal(found["model.norm.weight"], trained)


def test_a_model_without_adapters_is_published_as_it_is():
    model = tiny_model(tiny_tokenizer())
    found = dict(checkpoint_tensors(model))
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert found["model.norm.weight"].data_ptr() == model.model.norm.weight.data_ptr()


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
def test_an_adapter_on_tied_weights_is_one_line():
    model, _ = with_lora(target_modules=["lm_head"])
    with pytest.raises(ModelError, match=r"target_modules: model.embed_tokens.weight and lm_head.weight"):
        dict(checkpoint_tensors(model))

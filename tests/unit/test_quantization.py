"""QLoRA: what is published and exported computes what the quantised model computes."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

import sandbox_rl.training.models as models
from sandbox_rl.chat.turn_ends import TurnEnds
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import ModelError
from sandbox_rl.training.config import LoraSettings, ModelSettings
from sandbox_rl.training.export import export_model, whole_weights
from sandbox_rl.training.memory import NF4_BITS, estimate_memory, model_shape
from sandbox_rl.training.models import check_quantization, load_adapted, load_model
from sandbox_rl.training.publication.merge import checkpoint_tensors
from sandbox_rl.training.tiny import tiny_config, tiny_model, tiny_tokenizer
from tests.smoke.support import CARD

TOKENIZER = tiny_tokenizer()
IDS = torch.arange(10, 60).view(2, 25)


def settings(path: str, **fields) -> ModelSettings:
    return ModelSettings(path=path, dtype="float32", lora=LoraSettings(r=4), quantization="nf4", **fields)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("plain")
    tiny_model(TOKENIZER).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def adapted(plain) -> PeftModel:
    """Adapters that are not zero; of the linear layers some have none."""
    modules = ["q_proj", "v_proj", "up_proj"]
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        model = get_peft_model(
            load_model(settings(plain)), LoraConfig(r=4, target_modules=modules, init_lora_weights=False)
        )
    return model.eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


def test_a_server_that_loads_what_is_published_computes_the_same(adapted, plain):
    published = dict(checkpoint_tensors(adapted))
    server = AutoModelForCausalLM.from_pretrained(plain).eval()
    assert published.keys() == {name for name, _ in server.named_parameters()}
    assert all(tensor.is_floating_point() for tensor in published.values())
    stale = (logits(server) - logits(adapted)).abs().max()
    server.load_state_dict(published, strict=False)
    torch.testing.assert_close(logits(server), logits(adapted), atol=1e-4, rtol=1e-4)
    assert stale > 0.1


def test_the_export_is_a_plain_model_that_computes_the_same(adapted, tmp_path):
    path = export_model(
        adapted,
        TOKENIZER,
        tmp_path / "model",
        ends=TurnEnds(TOKENIZER.eos_token_id),
        dtype=torch.float32,
        **CARD,
        weights=whole_weights(adapted, dtype=torch.float32, keep=True),
    )
    exported = AutoModelForCausalLM.from_pretrained(path).eval()
    assert getattr(exported.config, "quantization_config", None) is None
    assert {p.dtype for p in exported.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(exported), logits(adapted), atol=1e-4, rtol=1e-4)


def test_adapters_come_back_on_the_quantised_model(adapted, plain, tmp_path):
    adapted.save_pretrained(tmp_path)
    again = load_adapted(tmp_path, settings("somewhere else")).eval()
    assert again.get_base_model().is_loaded_in_4bit
    torch.testing.assert_close(logits(again), logits(adapted))


def test_it_needs_adapters_and_rollouts_that_wait():
    with pytest.raises(ValidationError, match="cannot be trained themselves; add lora"):
        ModelSettings(quantization="nf4")
    recipe = {
        "mode": "async",
        "policy": {"type": "vllm"},
        "model": {"lora": {}, "quantization": "nf4"},
        "data": {"sources": [{"type": "reasoning_gym", "dataset": "chain_sum", "domain": "arithmetic"}]},
    }
    with pytest.raises(ValidationError, match=r"mode 'async' with model.quantization 'nf4', expected none"):
        Recipe.model_validate(recipe)


def test_without_bitsandbytes_it_is_one_line(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    check_quantization(ModelSettings())
    with pytest.raises(ModelError, match=r"'nf4' needs bitsandbytes.*pip install 'sandbox-rl\[qlora\]'"):
        check_quantization(settings("tiny"))


def test_the_estimate_counts_four_bits_of_every_linear_layer():
    shape = model_shape(tiny_config(TOKENIZER))
    args = GRPOConfig("unused", use_cpu=True, bf16=False)
    fields = {"prompt_tokens": 10, "completion_tokens": 10, "sampled_rows": 0}
    whole, small = (
        estimate_memory(
            shape,
            args,
            ModelSettings(dtype="float32", lora=LoraSettings(r=4), quantization=quantization),
            **fields,
        ).weights
        for quantization in (None, "nf4")
    )
    assert whole - small == int(shape.linear_weights * (4 - NF4_BITS / 8))
    assert 0.3 * shape.parameters < shape.linear_weights < shape.parameters

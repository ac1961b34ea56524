"""TRL's tiled head, made float32 and fed with aligned rows, against logits in one piece."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from sandbox_rl.training.log_probs import align_rows, float32_log_probs

TEMPERATURE = 0.7
PAD = 0
ROWS = ((3, 9), (6, 2), (1, 14), (4, 0))
"""Tokens of prompt and completion."""


def make_model(*, tied: bool = True, dtype=torch.float32, layers: int = 2) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=70_000,  # more than two tiles of the head are wide
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).to(dtype)


def with_lora(model):
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.train()
    return model


def as_causal_lm(model):
    """With peft's own class for it, which hands on `inputs_embeds=None` and more."""
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))


def batch() -> dict[str, torch.Tensor]:
    """Prompts padded on the left, completions on the right, as TRL does; every third token is masked."""
    torch.manual_seed(1)
    prompt, completion = max(p for p, _ in ROWS), max(c for _, c in ROWS)
    ids = torch.full((len(ROWS), prompt + completion), PAD)
    mask = torch.zeros_like(ids)
    for row, (p, c) in enumerate(ROWS):
        ids[row, prompt - p : prompt + c] = torch.randint(1, 70_000, (p + c,))
        mask[row, prompt - p : prompt + c] = 1
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :prompt] = -100
    labels[:, prompt::3] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def in_one_piece(model, inputs, dtype=torch.float32):
    """Log-probs and entropies of all positions from full logits, each row alone and without padding."""
    shape = (inputs["input_ids"].size(0), inputs["input_ids"].size(1) - 1)
    log_probs, entropies = torch.zeros(shape), torch.zeros(shape)
    for row, mask in enumerate(inputs["attention_mask"]):
        where = mask.nonzero().flatten()
        logits = model(inputs["input_ids"][row : row + 1, where]).logits[0].to(dtype) / TEMPERATURE
        whole = logits.log_softmax(-1)
        for column, position in enumerate(where[1:].tolist()):
            label = inputs["labels"][row, position]
            if label >= 0:
                log_probs[row, position - 1] = whole[column, label]
                entropies[row, position - 1] = -(whole[column].exp() * whole[column]).sum()
    return log_probs, entropies


def gradients(model, log_probs, entropies):
    weights = torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs)
    (weights * log_probs + 0.1 * entropies).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("wrap", [lambda m: m, with_lora], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_values_and_gradients_are_those_of_full_logits(tied, wrap):
    model, inputs = wrap(make_model(tied=tied)), batch()
    log_probs, entropies = in_one_piece(model, inputs)
    expected = gradients(model, log_probs, entropies)
    align_rows(float32_log_probs(model, temperature=TEMPERATURE))
    output = model(**inputs, fused_lm_head=True)
    torch.testing.assert_close(output.log_probs, log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.entropy, entropies, atol=1e-5, rtol=1e-5)
    assert (output.log_probs != 0).sum() == (inputs["labels"] >= 0).sum() > 10
    found = gradients(model, output.log_probs, output.entropy)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_parts_without_gradient_are_the_whole():
    model, inputs = make_model(), batch()
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    align_rows(float32_log_probs(whole, temperature=TEMPERATURE))
    align_rows(float32_log_probs(parts, temperature=TEMPERATURE), token_budget=16)
    widths = []
    parts.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        expected = whole(**inputs, fused_lm_head=True)
        found = parts(**inputs, fused_lm_head=True)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-6, rtol=1e-6)
    assert sorted(widths) == [(1, 12), (1, 15), (2, 8)]


@pytest.mark.parametrize("wrap", [lambda m: m, with_lora, as_causal_lm], ids=["full", "lora", "causal lm"])
def test_no_attention_mask_reaches_the_layers(wrap):
    base, inputs = make_model(layers=1), batch()
    model = wrap(base)
    align_rows(float32_log_probs(model, temperature=TEMPERATURE))
    seen = []
    base.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    model(**inputs, fused_lm_head=True)
    model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert seen[0] is None
    assert seen[1].shape == (4, 1, 20, 20), "transformers' own forward does make one"


def test_bfloat16_weights_give_float32_log_probs():
    """TRL's head as its trainers set it rounds logits to bf16; the same weights in float32 tell how far."""
    model, inputs = make_model(dtype=torch.bfloat16, layers=1), batch()
    rounded = copy.deepcopy(model)
    add_fused_lm_head(rounded, temperature=TEMPERATURE, outputs=("log_probs", "entropy"))
    float32_log_probs(model, temperature=TEMPERATURE)
    with torch.no_grad():
        hidden = model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        logits = hidden.last_hidden_state.double() @ model.lm_head.weight.double().T
        exact = (logits / TEMPERATURE).log_softmax(-1)[:, :-1]
        labels = inputs["labels"][:, 1:]
        exact = exact.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels < 0, 0)
        ours = (model(**inputs, fused_lm_head=True).log_probs - exact).abs().max()
        theirs = (rounded(**inputs, fused_lm_head=True).log_probs - exact).abs().max()
    assert model.lm_head.weight.dtype == torch.bfloat16, "nothing is stored twice"
    assert ours < 1e-4
    assert theirs > 100 * ours


def test_other_calls_are_the_model_s_own():
    model, inputs = make_model(layers=1), batch()
    expected = model(**inputs)
    align_rows(float32_log_probs(model, temperature=TEMPERATURE))
    found = model(**inputs)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)
    ids = inputs["input_ids"][2:3, -4:]
    model.generation_config.pad_token_id = PAD
    assert model.generate(ids, max_new_tokens=2, do_sample=False, eos_token_id=1).shape == (1, 6)

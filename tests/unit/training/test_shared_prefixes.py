"""What rows have in common is computed once: values, gradients and parts are those of the rows one by one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sandbox_rl.training.log_probs import align_rows, float32_log_probs
from sandbox_rl.training.shared_prefixes import pack_rows, plan_packed, shares_prefixes

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.3,
}


def qwen(**fields):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, **fields))


def windowed():
    """Each token sees four back."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))


def adapted():
    return get_peft_model(qwen(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))


def picky():
    """As the code that comes with a checkpoint may be: it takes no argument that it does not know."""
    model = qwen()
    inner = model.forward
    model.forward = lambda input_ids, position_ids=None, use_cache=None: inner(
        input_ids=input_ids, position_ids=position_ids
    )
    return model


def checkpointed():
    model = qwen()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


rows = st.lists(
    st.lists(st.integers(1, 3), min_size=1, max_size=12).map(lambda row: np.array(row)),
    min_size=1,
    max_size=8,
)


@given(rows)
def test_each_token_stands_once_and_sees_its_row_up_to_itself(rows):
    packed = pack_rows(rows)
    starts = packed.attention["tree_cu_seqlens_q"].tolist()
    paths = packed.attention["tree_cu_seqlens_k"].tolist()
    path_of = packed.attention["tree_kv_index"].tolist()
    following: dict[int, set[int]] = {}
    for row, places in zip(rows, packed.places.tolist(), strict=True):
        places = places[: len(row)]
        assert packed.ids[places].tolist() == row.tolist()
        assert packed.positions[places].tolist() == list(range(len(row)))
        for t, place in enumerate(places):
            segment = next(i for i in range(len(starts) - 1) if place < starts[i + 1])
            path = path_of[paths[segment] : paths[segment + 1]]
            # Aligned at the end: the segment's last token sees the whole path.
            assert path[: len(path) - (starts[segment + 1] - 1 - place)] == places[: t + 1]
            following.setdefault(place, set()).add(int(row[t + 1]) if t + 1 < len(row) else -1)
    assert all(len(labels) == 1 for labels in following.values()), "a packed token has one label"
    distinct = {(*row[: t + 1], *row[t + 1 : t + 2]) for row in map(tuple, rows) for t in range(len(row))}
    ended = sum(1 for row in {tuple(r) for r in rows})
    assert len(packed.ids) <= len(distinct) + ended


@given(rows, st.integers(1, 40) | st.none())
def test_every_row_is_in_one_part_within_the_budget(rows, budget):
    parts = plan_packed(rows, budget, CPU)
    if parts is None:
        whole = sum(len(row) for row in rows)
        assert len(pack_rows(rows).ids) > 0.9 * whole
        return
    assert sorted(row for part in parts for row in part) == list(range(len(rows)))
    for part in parts:
        assert budget is None or len(part) == 1 or len(pack_rows([rows[i] for i in part]).ids) <= budget
    assert budget is not None or len(parts) == 1


def batch() -> dict[str, torch.Tensor]:
    """Two groups of four as TRL pads them: common prompts, some common turns, one row twice."""
    generator = torch.Generator().manual_seed(1)

    def tokens(n):
        return torch.randint(1, 97, (n,), generator=generator).tolist()

    groups = []
    for length in (30, 17):
        prompt, turn = tokens(length), tokens(6)
        tails = [tokens(5), turn + tokens(7), turn + tokens(2), turn]
        groups += [(prompt, tail) for tail in tails]
    groups[5] = groups[4]
    width, longest = 30, max(len(tail) for _, tail in groups)
    ids = torch.zeros(len(groups), width + longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, tail) in enumerate(groups):
        place = slice(width - len(prompt), width + len(tail))
        ids[row, place], mask[row, place] = torch.tensor(prompt + tail), 1
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :width] = -100
    labels[1::2, width + 1 :: 3] = -100  # what a tool said, in some rows of those that share it
    labels[6] = -100  # without a reward
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def computed(model, *, share):
    """Log-probs, entropies and gradients; and how many tokens the forward saw."""
    model = copy.deepcopy(model)
    base = float32_log_probs(model, temperature=0.7)
    if share:
        assert shares_prefixes(base, low=False, device=CPU)
    align_rows(base, share_prefixes=share)
    seen = []
    base.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    output = model(**batch(), fused_lm_head=True)
    weights = torch.linspace(-1, 1, output.log_probs.numel()).view_as(output.log_probs)
    (weights * output.log_probs + 0.1 * output.entropy).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output, gradients, seen


@pytest.mark.parametrize(
    "make", [qwen, windowed, adapted, checkpointed], ids=["full", "windows", "lora", "checkpoints"]
)
def test_values_and_gradients_are_those_of_rows_one_by_one(make):
    model = make()
    expected, wanted, (padded,) = computed(model, share=False)
    found, gradients, (packed,) = computed(model, share=True)
    assert packed < padded / 3
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        found.entropy, expected.entropy * (batch()["labels"][:, 1:] >= 0), atol=1e-5, rtol=1e-5
    )
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        largest = float(gradient.abs().max())
        assert largest > 0 or "embed" not in name
        assert float((gradients[name] - gradient).abs().max()) <= 2e-6 + 1e-5 * largest, name


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: qwen(attn_implementation="eager"), "the attention 'eager' is the model's own"),
        (lambda: qwen(attention_dropout=0.1), "attention_dropout: 0.1"),
        (picky, "the trial failed (TypeError"),
        (
            lambda: get_peft_model(
                qwen(), LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1)
            ).get_base_model(),
            "lora_dropout.default drops values",
        ),
    ],
    ids=["eager", "dropout", "other arguments", "adapters' dropout"],
)
def test_models_that_cannot_are_left_as_they_are_and_the_log_says_why(make, reason, caplog):
    with caplog.at_level("WARNING"):  # what a person sees
        assert not shares_prefixes(make(), low=False, device=CPU)
    assert reason in caplog.text


def test_a_kernel_that_is_off_is_not_trained_with(monkeypatch):
    from sandbox_rl.training import shared_prefixes

    inner, calls = shared_prefixes.tree_attention, []

    def off(*given, **told):
        calls.append(1)
        out, weights = inner(*given, **told)
        return out * (1.1 if len(calls) == 1 else 1.0), weights

    monkeypatch.setattr(shared_prefixes, "tree_attention", off)
    assert not shares_prefixes(qwen(), low=False, device=CPU)
    monkeypatch.setattr(shared_prefixes, "tree_attention", inner)
    assert shares_prefixes(qwen(), low=False, device=CPU)


def test_a_forward_without_common_beginnings_is_padded_as_before():
    rows = [np.arange(9) + 20 * i for i in range(3)]
    assert plan_packed(rows, None, CPU) is None

"""Every forward of an update is the one without an attention mask, for every way of training a model."""

from __future__ import annotations

import warnings

import pytest
from peft import LoraConfig

from sandbox_rl.training import log_probs
from sandbox_rl.training.config import LoraSettings, ModelSettings
from sandbox_rl.training.estimator import to_rows
from sandbox_rl.training.group_rollouts import outcome_reward
from sandbox_rl.training.models import load_model
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.support import EOS, make_rollout, make_trainer

ROLLOUTS = [make_rollout("ab"[i // 4], float(i % 2), seed=i, turns=1 + i % 3) for i in range(8)]


def rolled_out(prompts, trainer):
    rows = to_rows([ROLLOUTS[i : i + 4] for i in range(0, len(ROLLOUTS), 4)], estimator="trl", eos_id=EOS)
    return {**rows, "rollout_metrics": [{}] * len(ROLLOUTS)}


def trainer_of(kind, directory, monkeypatch, *, tokens=None, **fields):
    """A trainer; the shapes of what its forwards compute; the masks that its decoder gets."""
    aligned, masks = [], []

    def counted(inner, place):
        return lambda *given: aligned.append(tuple(given[place].shape)) or inner(*given)

    for name, place in (("_aligned", 1), ("_packed", 2)):
        monkeypatch.setattr(log_probs, name, counted(getattr(log_probs, name), place))

    def make(*, model, **given):
        model.save_pretrained(directory / "start")
        model.config._name_or_path = str(directory / "start")
        if kind == "qlora":
            settings = ModelSettings(
                path=str(directory / "start"), dtype="float32", lora=LoraSettings(r=2), quantization="nf4"
            )
            model = load_model(settings)
        lora = None if kind == "full" else LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
        return SandboxGRPOTrainer(model=model, peft_config=lora, micro_batch_tokens=tokens, **given)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer = make_trainer(directory, rolled_out, outcome_reward, cls=make, **fields)
    models = [trainer.model, *([trainer.ref_model] if trainer.ref_model is not None else [])]
    for model in models:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.model.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
    return trainer, aligned, masks


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
@pytest.mark.parametrize(
    ("fields", "forwards"),
    [
        ({}, 1),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 2),
        # With a reference model, whose log-probs are computed beforehand in batches of the same size.
        ({"beta": 0.1}, 2),
        # Two updates of one generation, before which the old log-probs are computed.
        ({"num_iterations": 2, "max_steps": 2}, 3),
    ],
    ids=["one", "accumulated", "reference", "iterations"],
)
def test_each_forward_is_the_aligned_one(kind, fields, forwards, tmp_path, monkeypatch):
    trainer, aligned, masks = trainer_of(kind, tmp_path, monkeypatch, **fields)
    trainer.train()
    assert len(aligned) == len(masks) == forwards
    assert all(mask is None or mask.numel() == 1 for mask in masks)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_so_is_each_part_of_a_micro_batch(kind, tmp_path, monkeypatch):
    budget = 60
    trainer, aligned, masks = trainer_of(kind, tmp_path, monkeypatch, tokens=budget, beta=0.1)
    trainer.train()
    widest = max(len(r.trajectory.prompt_ids) + len(r.trajectory.completion_ids) for r in ROLLOUTS)
    assert widest <= budget
    assert len(aligned) == len(masks) > 2
    assert all(mask is None or mask.numel() == 1 for mask in masks)
    assert sum(rows for rows, _ in aligned) == 2 * len(ROLLOUTS), "by the reference and by the policy"

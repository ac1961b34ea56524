"""A base model's tokenizer under a ChatML template: its turns end by another id than its EOS, everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.model_builders import build_policy
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.export import export_model
from sandbox_rl.training.models import end_turns_with
from sandbox_rl.training.pretrained import generation_ends
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.support import CARD, EOS, RecordGradients, given_reward, make_rollout, rows_of

TOKENIZER = tiny_tokenizer()
TOKENIZER.eos_token = "<|endoftext|>"
END, DOCUMENT_END = TOKENIZER.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
CHAT = ChatFormat.from_tokenizer(TOKENIZER, ())


def base_model():
    model = tiny_model(TOKENIZER)
    assert model.generation_config.eos_token_id == DOCUMENT_END
    return model


def test_rows_that_end_their_turns_are_trained_on_where_truncated_ones_are_masked(tmp_path):
    assert EOS == END != TOKENIZER.eos_token_id
    rollouts = [make_rollout("a", float(i % 2), seed=i) for i in range(4)]
    gradients = RecordGradients()
    model = base_model()
    end_turns_with(model, CHAT.ends)
    trainer = SandboxGRPOTrainer(
        model=model,
        args=GRPOConfig(
            str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=4,
            max_steps=1,
            mask_truncated_completions=True,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=TOKENIZER,
        reward_funcs=given_reward,
        rollout_func=lambda prompts, trainer: rows_of(rollouts),
        callbacks=[gradients],
    )
    trainer.train()
    assert any(gradient.abs().max() > 0 for gradient in gradients.steps[0].values())
    (clipped,) = [e["completions/clipped_ratio"] for e in trainer.state.log_history if "loss" in e]
    assert clipped == 0.0
    assert set(trainer.eos_token_ids) == CHAT.ends.ids
    saved = tmp_path / "checkpoint"
    trainer.save_model(str(saved))
    assert set(generation_ends(ModelSettings(path=str(saved)))) == CHAT.ends.ids


def test_the_exported_model_ends_its_own_turns(tmp_path):
    model = base_model()
    path = export_model(
        model,
        TOKENIZER,
        tmp_path / "model",
        ends=CHAT.ends,
        dtype=torch.float32,
        **CARD,
    )
    assert json.loads((path / "generation_config.json").read_text())["eos_token_id"] == [END, DOCUMENT_END]
    assert generation_ends(ModelSettings(path=str(path))) == (END, DOCUMENT_END)
    exported = AutoModelForCausalLM.from_pretrained(path)
    always_end(exported)
    said = exported.generate(torch.tensor([[11, 12]]), max_new_tokens=8, do_sample=False)
    assert said[0].tolist() == [11, 12, END]


@pytest.mark.parametrize("end", sorted(CHAT.ends.ids))
async def test_sampling_in_process_stops_at_each_of_them(end):
    model = base_model()
    always_end(model, end)
    async with build_policy(TransformersSettings(), model, TOKENIZER, CHAT) as policy:
        async with policy.session("episode") as session:
            action = await session.act((11, 12), TurnSampling(max_tokens=8, temperature=0.0), timeout=30)
    assert (action.token_ids, action.finish_reason) == ((end,), "stop")


def test_ends_come_from_the_generation_config_or_else_the_configuration(tmp_path):
    model = base_model()
    model.generation_config.eos_token_id = [7, 9]
    model.save_pretrained(tmp_path)
    assert generation_ends(ModelSettings(path=str(tmp_path))) == (7, 9)
    (Path(tmp_path) / "generation_config.json").unlink()
    assert generation_ends(ModelSettings(path=str(tmp_path))) == (DOCUMENT_END,)


def always_end(model, end: int = END) -> None:
    """Have the model say nothing but `end`."""

    def only(module, inputs, output):
        output.logits[..., end] = 1e4
        return output

    model.register_forward_hook(only)

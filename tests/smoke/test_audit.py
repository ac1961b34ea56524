"""Faults that look like a run, planted into a real one: the audit names each, and is quiet without them."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from sandbox_rl.audit.alarms import AlarmName
from sandbox_rl.audit.run import RunAudit
from sandbox_rl.audit.sampler import SamplerCause
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.training.estimator import advantage_rule
from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.support import EOS, TOKENIZER, make_rollout, make_trainer, tiny_model

STEPS = 3
"""Steps within which a planted fault must have been named."""


class Episodes:
    """Stands where the rollout engine stands; `lost` of a hundred episodes are not judged.

    Tokens are anybody's; log-probs are those of `model` at the time.
    """

    def __init__(self, seed: int = 0, lost: int = 0) -> None:
        self.model = None
        self._random = random.Random(seed)
        self._lost = lost
        self._count = 0
        self.occupancy = Occupancy()

    async def run(self, requests, observer=None):
        made = []
        for request in requests:
            self._count += 1
            reward = self._random.choice((0.0, 0.0, 1.0, 0.5))
            if self._random.randrange(100) < self._lost:
                reward = None
            rollout = make_rollout(request.task.id, reward, seed=self._count, turns=1 + self._count % 3)
            made.append(with_log_probs(rollout, self.model))
        return made


def with_log_probs(rollout, model):
    """The rollout as if `model` had sampled it at temperature 1."""
    trajectory = rollout.trajectory
    ids = torch.tensor([[*trajectory.prompt_ids, *trajectory.completion_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].float()
    scores = logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()
    at, turns = len(trajectory.prompt_ids) - 1, []
    for turn in trajectory.turns:
        count = len(turn.action.token_ids)
        action = replace(turn.action, logprobs=tuple(scores[at : at + count]))
        turns.append(replace(turn, action=action))
        at += count + len(turn.observation_ids)
    return replace(rollout, trajectory=replace(trajectory, turns=tuple(turns)))


def run(
    directory,
    *,
    episodes=None,
    rollouts=None,
    reward=outcome_reward,
    prepare=None,
    cls=SandboxGRPOTrainer,
    **fields,
):
    """A few updates under TRL, and the alarms and metrics; `rollouts`, `reward`, `prepare` plant faults."""
    episodes = episodes or Episodes()
    given = {"reward_weights": None, "multi_objective_aggregation": "sum_then_normalize"}
    rule = advantage_rule("trl", SimpleNamespace(**given, scale_rewards=fields.get("scale_rewards", "group")))
    audit = RunAudit.start(masks_truncated=fields.get("mask_truncated_completions", False), advantages=rule)
    with LoopThread() as loop:
        func = (rollouts or GroupRollouts)(
            episodes,
            loop,
            {name: make_rollout(name, 1.0, seed=0).task for name in ("a", "b")},
            estimator="trl",
            seed=0,
            eos_id=EOS,
            audit=audit.samples,
        )
        trainer = make_trainer(
            directory,
            func,
            reward,
            cls=lambda **given: cls(audit=audit, **given),
            **{"max_steps": STEPS, "learning_rate": 1e-4} | fields,
        )
        episodes.model = trainer.model
        if prepare is not None:
            prepare(trainer)
        trainer.train()
    return [alarm.name for alarm in audit.alarms.raised], trainer.state.log_history


class ShiftedMask(GroupRollouts):
    def __call__(self, prompts, trainer):
        rows = super().__call__(prompts, trainer)
        return {**rows, "env_mask": [[mask[-1], *mask[:-1]] for mask in rows["env_mask"]]}


class OtherTokens(GroupRollouts):
    def __call__(self, prompts, trainer):
        rows = super().__call__(prompts, trainer)
        return {**rows, "completion_ids": [[ids[0] ^ 1, *ids[1:]] for ids in rows["completion_ids"]]}


def shuffled_reward(prompts, signal, log_metric, **columns):
    return outcome_reward(prompts, signal[1:] + signal[:1], log_metric, **columns)


def faults_as_zero(prompts, signal, log_metric, **columns):
    return outcome_reward(prompts, [value or 0.0 for value in signal], log_metric, **columns)


def in_bfloat16(trainer):
    trainer.model.to(torch.bfloat16)


class BeforeUpdate(TrainerCallback):
    """Does something to the model before the audit and the optimizer see its gradients."""

    def __init__(self, act):
        self._act = act

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self._act(model)


class Undo(TrainerCallback):
    """Puts the weights back after each update."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self._was = [p.detach().clone() for p in model.parameters()]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            for parameter, was in zip(model.parameters(), self._was, strict=True):
                parameter.copy_(was)


def before_update(act):
    return lambda trainer: trainer.callback_handler.callbacks.insert(0, BeforeUpdate(act))


def nan_in_one_row(model):
    gradient = next(model.parameters()).grad
    if gradient is not None:  # the update after it is left out
        gradient[0] = float("nan")


def other_weights(trainer):
    """An optimizer made before the weights were replaced."""
    trainer.optimizer = torch.optim.AdamW([p.detach().clone() for p in trainer.model.parameters()], lr=1e-4)


def part_of_weights(trainer):
    kept = [p for name, p in trainer.model.named_parameters() if "mlp" not in name]
    trainer.optimizer = torch.optim.AdamW(kept, lr=1e-4)


class Louder(SandboxGRPOTrainer):
    """Advantages that something multiplies."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        return {**output, "advantages": 1.5 * output["advantages"]}


class NormsOnly(TrainerCallback):
    """From the second step on only norms are trained."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name or state.global_step < 1)


class Cleared(TrainerCallback):
    """Adam forgets after each step: all it knows, or its moments alone."""

    def __init__(self, *, moments):
        self._moments = moments

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        inner = getattr(optimizer, "optimizer", optimizer)
        if not self._moments:
            inner.state.clear()
        for kept in inner.state.values():
            kept["exp_avg"].zero_()


def with_callback(made):
    return lambda trainer: trainer.add_callback(made)


def norms_only(trainer):
    """From the beginning."""
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_("norm" in name)


PLANTED = {
    "advantages that are multiplied": (AlarmName.ADVANTAGE_DIFFERS, {"cls": Louder}),
    "advantages that are multiplied, unscaled": (
        AlarmName.ADVANTAGE_DIFFERS,
        {"cls": Louder, "scale_rewards": "none"},
    ),
    "norms alone are trained": (AlarmName.FROZEN, {"prepare": norms_only}),
    "norms alone are trained later on": (AlarmName.FROZEN, {"prepare": with_callback(NormsOnly())}),
    "an optimizer that begins anew": (
        AlarmName.OPTIMIZER_CHANGED,
        {"prepare": with_callback(Cleared(moments=False))},
    ),
    "moments that are cleared": (
        AlarmName.OPTIMIZER_CHANGED,
        {"prepare": with_callback(Cleared(moments=True))},
    ),
    "a learning rate of 0": (AlarmName.NO_UPDATE, {"learning_rate": 0.0}),
    "gradients that are clipped away": (AlarmName.NO_UPDATE, {"max_grad_norm": 1e-12}),
    "gradients that are zeroed": (
        AlarmName.NO_UPDATE,
        {"prepare": before_update(lambda model: model.zero_grad(set_to_none=False))},
    ),
    "gradients that never arrive": (
        AlarmName.NO_UPDATE,
        {"prepare": before_update(lambda model: model.zero_grad())},
    ),
    "an optimizer of other weights": (AlarmName.NO_UPDATE, {"prepare": other_weights}),
    "an optimizer without the MLPs": (AlarmName.NO_UPDATE, {"prepare": part_of_weights}),
    "a gradient of NaN": (AlarmName.NOT_FINITE, {"prepare": before_update(nan_in_one_row)}),
    "updates that are undone": (
        AlarmName.WEIGHTS_CHANGED,
        {"prepare": lambda trainer: trainer.add_callback(Undo())},
    ),
    "an update lost in bfloat16": (
        AlarmName.UPDATES_VANISH,
        {"prepare": in_bfloat16, "learning_rate": 1e-6},
    ),
    "a mask moved by one": (AlarmName.MASK_DIFFERS, {"rollouts": ShiftedMask}),
    "tokens that nobody sampled": (AlarmName.UNKNOWN_ROW, {"rollouts": OtherTokens}),
    "rewards of other rows": (AlarmName.ADVANTAGE_DIFFERS, {"reward": shuffled_reward}),
    "a fault that counts as 0": (AlarmName.FAULT_AS_REWARD, {"reward": faults_as_zero, "lost": 30}),
    "a temperature that the sampler's log-probs lack": (AlarmName.SAMPLER_DIFFERS, {"temperature": 0.5}),
    "another end-of-turn id": (
        AlarmName.NOTHING_TRAINED,
        {
            "prepare": lambda trainer: setattr(trainer, "eos_token_ids", {7}) or drop_pad(trainer),
            "mask_truncated_completions": True,
        },
    ),
}


def drop_pad(trainer):
    """TRL takes a row that ends in padding for one that ended; here padding and end of turn are one id."""
    trainer._tokenizer.pad_token_id = 3


@pytest.mark.parametrize("fault", sorted(PLANTED))
def test_a_planted_fault_is_named(tmp_path, fault):
    name, planted = PLANTED[fault]
    planted = dict(planted)
    episodes = Episodes(lost=planted.pop("lost", 0))
    alarms, _ = run(tmp_path, episodes=episodes, **planted)
    assert name in alarms


@pytest.mark.parametrize("lost", [0, 10])
def test_a_healthy_run_is_quiet_and_its_classes_add_up(tmp_path, lost):
    alarms, log = run(
        tmp_path, episodes=Episodes(lost=lost), max_steps=80, num_iterations=2, save_strategy="no"
    )
    assert alarms == []
    steps = [line for line in log if "samples/tokens" in line]
    assert len(steps) == 40  # tokens of a generation are counted once, at its first update
    for line in steps:
        shares = {name: value for name, value in line.items() if name.startswith("samples/")}
        del shares["samples/tokens"], shares["samples/observed"]
        assert sum(shares.values()) == pytest.approx(1)
    assert any(line["samples/trained"] > 0.5 for line in steps)
    assert all(
        line["update/applied"] == pytest.approx(1, abs=0.01) for line in log if "update/applied" in line
    )


def test_an_episode_that_never_reaches_the_loss_is_named(tmp_path):
    """TRL trains on as many rows as it gets: one of eight replaced by a copy of its neighbour."""

    class Doubled(GroupRollouts):
        def __call__(self, prompts, trainer):
            rows = super().__call__(prompts, trainer)
            return {
                name: [values[0], values[0], *values[2:]] if name != "signal" else values
                for name, values in rows.items()
            }

    alarms, _ = run(tmp_path, rollouts=Doubled)
    assert AlarmName.LOST_ROW in alarms


class OldOfOthers(SandboxGRPOTrainer):
    """Old log-probs as of another version of the weights."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        return {**output, "old_per_token_logps": torch.full_like(output["sampling_per_token_logps"], -1.0)}


def test_old_log_probs_of_another_version_are_named(tmp_path):
    alarms, _ = run(tmp_path, cls=OldOfOthers, num_iterations=2)
    assert AlarmName.OLD_LOG_PROBS in alarms


def details_of(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_the_cause_of_a_gap_is_named_temperature(tmp_path, caplog):
    run(tmp_path, temperature=0.5)
    assert SamplerCause.TEMPERATURE.value in details_of(caplog)


def test_the_cause_of_a_gap_is_named_adapters(tmp_path, caplog):
    """The sampler plays the base model: what was trained never reached it."""

    class Base(Episodes):
        async def run(self, requests, observer=None):
            with self.model.disable_adapter():
                return await super().run(requests, observer)

    def far_along(trainer):
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))

    def adapted(**given):
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        return SandboxGRPOTrainer(peft_config=config, **given)

    alarms, _ = run(tmp_path, episodes=Base(), cls=adapted, prepare=far_along)
    assert AlarmName.SAMPLER_DIFFERS in alarms
    assert SamplerCause.ADAPTER.value in details_of(caplog)


class OwnModel(Episodes):
    """The sampler holds a model of its own, as the trainer's was at the start."""

    def holds(self, trainer):
        self.own = tiny_model(TOKENIZER, seed=0)
        for model in (self.own, trainer.model):  # to log-probs that rounding moves far
            torch.nn.init.constant_(model.model.norm.weight, 40.0)

    async def run(self, requests, observer=None):
        self.model = self.own
        return await super().run(requests, observer)


def test_the_cause_of_a_gap_is_named_precision(tmp_path, caplog):
    """The sampler computes in float32, the trainer in bfloat16."""
    episodes = OwnModel()
    alarms, _ = run(tmp_path, episodes=episodes, prepare=episodes.holds, bf16=True, learning_rate=1e-7)
    assert AlarmName.SAMPLER_DIFFERS in alarms
    assert SamplerCause.PRECISION.value in details_of(caplog)


class Truncated(Episodes):
    """Samples by top_p, and says the log-probs of what is left."""

    def __init__(self, share):
        super().__init__()
        self._share = share

    async def run(self, requests, observer=None):
        return [self.cut(rollout) for rollout in await super().run(requests, observer)]

    @torch.no_grad()
    def cut(self, rollout):
        ids, turns = list(rollout.trajectory.prompt_ids), []
        for turn in rollout.trajectory.turns:
            drawn, said = [], []
            for _ in turn.action.token_ids:
                scores = self.model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
                ordered, order = scores.sort(descending=True)
                count = int((ordered.exp().cumsum(0) < self._share).sum()) + 1
                left = ordered[:count].log_softmax(-1)
                place = self._random.choices(range(count), weights=left.exp().tolist())[0]
                drawn.append(int(order[place]))
                said.append(float(left[place]))
                ids.append(drawn[-1])
            ids += turn.observation_ids
            action = replace(turn.action, token_ids=tuple(drawn), logprobs=tuple(said))
            turns.append(replace(turn, action=action))
        return replace(rollout, trajectory=replace(rollout.trajectory, turns=tuple(turns)))


@pytest.mark.parametrize("share", [0.6, 0.83])
def test_the_cause_of_a_gap_is_named_truncation(tmp_path, caplog, share):
    alarms, _ = run(tmp_path, episodes=Truncated(share))
    assert AlarmName.SAMPLER_DIFFERS in alarms
    assert SamplerCause.TRUNCATION.value in details_of(caplog)


def test_other_weights_are_not_taken_for_a_known_cause(tmp_path, caplog):
    """A sampler that is surer of itself everywhere says more of what it samples, as a truncated one does."""

    class Stale(OwnModel):
        def holds(self, trainer):
            super().holds(trainer)
            torch.nn.init.constant_(trainer.model.model.norm.weight, 6.0)

    episodes = Stale()
    alarms, _ = run(tmp_path, episodes=episodes, prepare=episodes.holds)
    assert AlarmName.SAMPLER_DIFFERS in alarms
    assert SamplerCause.UNKNOWN.value in details_of(caplog)

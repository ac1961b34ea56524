"""Episodes as JSON values, whole, and back: what is exported and what a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sandbox_rl.types import (
    Action,
    Answer,
    AnswerStatus,
    ChatRecord,
    MalformedCall,
    Observation,
    Reward,
    Rollout,
    StopReason,
    Task,
    ToolCall,
    ToolFailure,
    Trajectory,
    Turn,
    TurnTiming,
)


def rollout_record(rollout: Rollout, **context: Any) -> dict[str, Any]:
    """A rollout as JSON values: every token, log-prob, call, observation, timing and reward.

    Args:
        context: more fields of the line, such as the step or the phase.
    """
    t = rollout.trajectory
    return {
        **context,
        "episode_id": t.episode_id,
        "task_id": t.task_id,
        "domain": rollout.task.domain,
        **end_record(rollout),
        "prompt_ids": list(t.prompt_ids),
        "turns": [turn_record(turn) for turn in t.turns],
    }


def end_record(rollout: Rollout) -> dict[str, Any]:
    """How an episode ended and what it was scored; an endpoint's also has its messages, instead of ids."""
    t, reward = rollout.trajectory, rollout.reward
    chat = {} if t.chat is None else {"messages": list(t.chat.messages), "usage": dict(t.chat.usage)}
    return {
        "stop": t.stop.value,
        "fault": t.fault,
        "answer": {"status": t.answer.status.value, "text": t.answer.text},
        "reward": reward.value,
        "reward_parts": dict(reward.parts),
        "reward_detail": reward.detail,
        "scoring_seconds": reward.seconds,
        "seconds": t.seconds,
        **chat,
    }


def turn_record(turn: Turn) -> dict[str, Any]:
    """A turn with its tokens."""
    logprobs = turn.action.logprobs
    return {
        "token_ids": list(turn.action.token_ids),
        "logprobs": None if logprobs is None else list(logprobs),
        **turn_text(turn),
        "observation_ids": list(turn.observation_ids),
    }


def turn_text(turn: Turn) -> dict[str, Any]:
    """A turn without its tokens."""
    action = turn.action
    return {
        "finish_reason": action.finish_reason,
        "weight_version": action.weight_version,
        "weight_switches": [list(switch) for switch in action.weight_switches],
        **({} if action.switches_known else {"switches_known": False}),
        "calls": [
            {"malformed": call.reason}
            if isinstance(call, MalformedCall)
            else {"name": call.name, "arguments": dict(call.arguments)}
            for call in turn.calls
        ],
        "observations": [asdict(observation) for observation in turn.observations],
        "generation_seconds": turn.timing.generation,
        "execution_seconds": turn.timing.execution,
    }


def rollout_from_record(record: Mapping[str, Any], task: Task) -> Rollout:
    """The rollout of such a record, of its task: equal to the one that it was made of."""
    reward = Reward(
        record["reward"],
        record["reward_parts"],
        record["reward_detail"],
        record["scoring_seconds"],
        bool(record.get("masked")),
    )
    return Rollout(trajectory_from_record(record), reward, task)


def trajectory_from_record(record: Mapping[str, Any]) -> Trajectory:
    """The trajectory of such a record, equal to the one that it was made of."""
    return Trajectory(
        task_id=record["task_id"],
        prompt_ids=tuple(record["prompt_ids"]),
        turns=tuple(
            Turn(
                action=Action(
                    tuple(turn["token_ids"]),
                    None if turn["logprobs"] is None else tuple(turn["logprobs"]),
                    turn["finish_reason"],
                    turn["weight_version"],
                    # Written since there are switches; a journal from before has none.
                    tuple((index, version) for index, version in turn.get("weight_switches", ())),
                    turn.get("switches_known", True),
                ),
                calls=tuple(
                    MalformedCall(call["malformed"])
                    if "malformed" in call
                    else ToolCall(call["name"], call["arguments"])
                    for call in turn["calls"]
                ),
                observations=tuple(
                    Observation(**{**o, "failure": ToolFailure(o["failure"]) if o["failure"] else None})
                    for o in turn["observations"]
                ),
                observation_ids=tuple(turn["observation_ids"]),
                timing=TurnTiming(turn["generation_seconds"], turn["execution_seconds"]),
            )
            for turn in record["turns"]
        ),
        stop=StopReason(record["stop"]),
        answer=Answer(AnswerStatus(record["answer"]["status"]), record["answer"]["text"]),
        episode_id=record["episode_id"],
        fault=record["fault"],
        seconds=record["seconds"],
        chat=ChatRecord(tuple(record["messages"]), record["usage"]) if "messages" in record else None,
    )

"""The values that flow through a run, one way: Task → Trajectory → Rollout.

All are frozen; a later stage returns a new value and never fills in an earlier one. Shapes: `T` is
the number of completion tokens of an episode; all per-token tuples of a trajectory have length T.
"""

from sandbox_rl.types.task import Answer, AnswerStatus, Message, Task
from sandbox_rl.types.trajectory import ChatRecord, Reward, Rollout, StopReason, Trajectory
from sandbox_rl.types.turns import (
    Action,
    ExecResult,
    ExecStatus,
    MalformedCall,
    Observation,
    Stream,
    ToolCall,
    ToolFailure,
    Turn,
    TurnTiming,
    token_versions,
)

__all__ = [
    "Action",
    "Answer",
    "AnswerStatus",
    "ChatRecord",
    "ExecResult",
    "ExecStatus",
    "MalformedCall",
    "Message",
    "Observation",
    "Reward",
    "Rollout",
    "StopReason",
    "Stream",
    "Task",
    "ToolCall",
    "ToolFailure",
    "Trajectory",
    "Turn",
    "TurnTiming",
    "token_versions",
]

"""What is made of a server's reply: an action that is what was sampled, with the weights of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sandbox_rl.http_client import BadReply
from sandbox_rl.types import Action

__all__ = ["action_of", "divided"]


def divided(action: Action, switches: Sequence[Sequence[int]] | None) -> Action:
    """The action with the versions of its tokens, where weights were published while it was sampled.

    Args:
        switches: (index of a token, version of the weights from there on); None where the server did not say.
    """
    if switches is None:
        return replace(action, switches_known=False)
    begins = {index: version for index, version in switches if index < len(action.token_ids)}
    first = begins.pop(0, action.weight_version)
    return replace(action, weight_version=first, weight_switches=tuple(sorted(begins.items())))


def action_of(answer: Any, prompt_ids: Sequence[int], version: int) -> Action:
    """The action in a reply, checked: what is trained on must be what was sampled.

    Raises:
        BadReply: a reply without token ids, of another prompt, or with other than one log-prob each.
    """
    try:
        choice = answer["choices"][0]
        token_ids = tuple(choice["token_ids"])
        logprobs = tuple(choice["logprobs"]["token_logprobs"])
        echoed = choice.get("prompt_token_ids")
        finish_reason = choice["finish_reason"]
    except (TypeError, KeyError, IndexError) as error:
        raise BadReply(f"a reply without {error}, expected token_ids and logprobs") from error
    if echoed is not None and echoed != list(prompt_ids):
        raise BadReply("the server says that it sampled after another prompt than the one sent")
    if len(logprobs) != len(token_ids) or not all(isinstance(p, int | float) for p in logprobs):
        raise BadReply(f"a reply with {len(token_ids)} token ids and {len(logprobs)} log-probs")
    if not token_ids or finish_reason not in ("stop", "length"):
        raise BadReply(f"a reply of {len(token_ids)} tokens that ended by {finish_reason!r}")
    return Action(token_ids, logprobs, finish_reason, version)

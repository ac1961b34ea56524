"""The HTTP routes of one vLLM server: completions, control, weight transfer (vLLM 0.26 to 0.32).

What is made of a completion is an action that is what was sampled, with the weights of each token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sandbox_rl.http_client import BadReply, HttpClient, Refused, Unreachable
from sandbox_rl.types import Action

CONTROL_TIMEOUT_S = 120.0
"""Seconds that a control route may take; loading the weights of a large model takes some."""

_COUNTS = re.compile(
    rb"^vllm:(generation_tokens_total|prompt_tokens_total|num_requests_running|num_requests_waiting)"
    rb"(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """What a server says about the work of its engine.

    Args:
        tokens: read and sampled since its start.
        requests: that are being sampled or wait to be.
    """

    tokens: float
    requests: float


class VLLMServer(HttpClient):
    """One server. Without a limit of connections: the episodes in flight are the limit."""

    async def call(
        self,
        method: str,
        route: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: float = CONTROL_TIMEOUT_S,
        query: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON that a route answers with, None where it answers with nothing.

        Raises:
            Refused, Unreachable: as of `HttpClient.json`; nothing is tried again here.
        """
        return await self.json(method, route, body, timeout=timeout, query=query)

    async def healthy(self, timeout: float = 5.0) -> bool:
        """Whether it answers and its engine lives."""
        try:
            await self.call("GET", "/health", timeout=timeout)
        except (Refused, Unreachable):
            return False
        return True

    async def engine_counts(self, timeout: float) -> EngineCounts:
        """From its metrics.

        Raises:
            Refused, Unreachable: none there, or without these counts.
        """
        found: dict[str, float] = {}
        for name, value in _COUNTS.findall(await self.content("GET", "/metrics", timeout=timeout)):
            found[name.decode()] = found.get(name.decode(), 0.0) + float(value)
        if "generation_tokens_total" not in found:
            raise BadReply("/metrics: no vllm:generation_tokens_total")
        requests = found.get("num_requests_running", 0.0) + found.get("num_requests_waiting", 0.0)
        return EngineCounts(
            found["generation_tokens_total"] + found.get("prompt_tokens_total", 0.0), requests
        )

    async def weights_version(self) -> int | None:
        """Of the weights that its workers were given; None where they have loaded them by themselves.

        Raises:
            Refused, Unreachable: it does not say.
        """
        versions = [said.get("version") for said in await self.rpc("sandbox_rl_version")]
        return None if None in versions else min(versions, default=None)

    async def rpc(self, method: str, *args: str) -> list[Any]:
        """Results of a worker method, one per worker."""
        answer = await self.call("POST", "/collective_rpc", {"method": method, "args": list(args)})
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list):
            raise Unreachable(f"/collective_rpc {method}: answered {str(answer)[:80]}, expected results")
        return results


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

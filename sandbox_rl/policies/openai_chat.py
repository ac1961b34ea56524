"""A policy behind an OpenAI-compatible chat endpoint: vLLM, SGLang, llama.cpp, or a hosted one.

It speaks messages, not token ids, so its episodes can be evaluated and shown, never trained on.
Replies are asked for whole (`stream: false`): a reply that is cut off or is not JSON is distinguished from
a short one, and is asked for again.

Whose fault is it? What the model says (no call, a call that cannot be parsed) is returned. What the
endpoint does (time-outs, 5xx, 429, nonsense) is retried within the turn's time and then an `EngineFault`.
What no retry can change (wrong key, model or address) is the user's: `ConfigError`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from sandbox_rl.errors import ConfigError, EngineFault
from sandbox_rl.http_client import Address, BadAddress, HttpClient, Refused, Unreachable
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.retries import GaveUp, Retries
from sandbox_rl.settings import Settings
from sandbox_rl.types import MalformedCall, ToolCall

MAX_CALLS = 32
"""Calls of one turn that are looked at."""

_SURROGATE = re.compile("[\ud800-\udfff]")

_SEED_BITS = (1 << 31) - 1  # some servers keep seeds in 32 bits, signed


class EndpointSettings(Settings):
    """An OpenAI-compatible chat endpoint."""

    base_url: str = Field(pattern=r"^https?://\S+$")
    """Address up to and including /v1."""
    model: str
    """Model name that the endpoint knows."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with the key; it may be unset."""
    request_timeout_s: float = Field(600.0, gt=0)
    """Seconds that one request may take."""
    retries: int = Field(4, ge=0)
    """Further tries of one turn."""
    backoff_s: float = Field(0.5, ge=0)
    """First wait before a retry; doubles each time, with jitter, up to 20 s."""
    connections: int = Field(256, ge=1)
    """Open at the same time."""

    @classmethod
    def named(
        cls, base_url: str | None, model: str | None, api_key_env: str | None, *, retries: int = 4
    ) -> EndpointSettings | None:
        """What a command's --base-url, --model and --api-key-env name; None without an address.

        Raises:
            ConfigError: they do not go together, or the variable is not set.
        """
        if base_url is None:
            if api_key_env is not None:
                raise ConfigError("--api-key-env: given without --base-url, which names the endpoint; add it")
            return None
        if model is None:
            raise ConfigError("--base-url: given without --model; name the model that the endpoint serves")
        if not re.fullmatch(r"https?://\S+", base_url):
            raise ConfigError(f"--base-url: {base_url!r}, expected http://HOST:PORT/v1")
        if api_key_env is None:
            return cls(base_url=base_url, model=model, retries=retries)
        if not os.environ.get(api_key_env):
            raise ConfigError(f"--api-key-env: variable {api_key_env!r} is not set; export it with the key")
        return cls(base_url=base_url, model=model, api_key_env=api_key_env, retries=retries)


class ContextFull(Exception):
    """The conversation no longer fits into the model's context: a budget's end, nobody's fault."""


@dataclass(frozen=True, slots=True)
class ChatCall:
    """One call with the id that its answer must carry, made up where the endpoint gave none."""

    id: str
    call: ToolCall | MalformedCall


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One assistant turn.

    Args:
        text, reasoning: what it said; reasoning is "" where the endpoint does not tell.
        message: the message to put into the history, in the endpoint's own form.
        prompt_tokens, completion_tokens: None where the endpoint does not count.
    """

    text: str
    reasoning: str
    calls: tuple[ChatCall, ...]
    message: Mapping[str, Any]
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None


class ChatClient(HttpClient):
    """An async context manager; safe to use from many episodes of one event loop."""

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        key = os.environ.get(settings.api_key_env, "") if settings.api_key_env else ""
        super().__init__(
            Address(settings.base_url.rstrip("/")),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            connections=settings.connections,
            proxies=True,
        )

    async def reply(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        sampling: TurnSampling,
        *,
        timeout: float,
    ) -> ChatReply:
        """The next assistant turn.

        Args:
            timeout: seconds left of the episode, retries included.

        Raises:
            TimeoutError: the episode's time is up while the endpoint was at work.
            ContextFull: the conversation is too long for the model.
            EngineFault: the endpoint failed on every try.
            ConfigError: key, model or address are wrong.
        """
        body = self._body(messages, tools, sampling)

        async def attempt() -> ChatReply:
            answer = await self.json(
                "POST", "/chat/completions", body, timeout=self.settings.request_timeout_s
            )
            return _read(answer, len(messages))

        try:
            return await Retries(self.settings.retries, self.settings.backoff_s).run(attempt, timeout=timeout)
        except Refused as error:
            raise self._meaning(error) from error
        except BadAddress as error:
            raise ConfigError(
                f"--base-url {self.settings.base_url!r}: {error}; give http://HOST:PORT/v1"
            ) from error
        except GaveUp as error:
            raise EngineFault(
                f"{self._who}: {len(error.failures)} tries failed; the last: {error}"
            ) from error

    @property
    def _who(self) -> str:
        return f"endpoint {self.settings.base_url}, model {self.settings.model!r}"

    def _body(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        sampling: TurnSampling,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": list(messages),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed & _SEED_BITS,
            "stream": False,
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k  # not OpenAI's own; vLLM, SGLang and llama.cpp know it
        if tools:
            body["tools"] = list(tools)
        return body

    def _meaning(self, refused: Refused) -> Exception:
        """What a refusal means: the user's to fix, the end of a budget, or a fault."""
        status, said = refused.status, refused.detail[:300]
        low = said.lower()
        if status in (401, 403):
            env = self.settings.api_key_env or "none"
            return ConfigError(f"{self._who}: HTTP {status}, the key is not accepted; set {env} ({said})")
        if status == 404 or status < 400:
            return ConfigError(
                f"{self._who}: HTTP {status}; expected a base URL that ends in /v1 and a model that it "
                f"serves ({said})"
            )
        if "context" in low and any(word in low for word in ("length", "exceed", "window", "size", "long")):
            return ContextFull(said)
        hint = ""
        if "tool" in low:
            hint = (
                "; it refuses tools: start vLLM with --enable-auto-tool-choice and a --tool-call-parser, "
                "llama.cpp with --jinja, SGLang with --tool-call-parser"
            )
        return EngineFault(f"{self._who}: HTTP {status}: {said}{hint}")


def _read(body: Any, turn: int) -> ChatReply:
    """The reply in a body; whatever is odd about its form raises `Unreachable`."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content")
        if isinstance(text, list):  # content parts
            text = "".join(part.get("text", "") for part in text if isinstance(part, dict))
        text = "" if text is None else text
        if isinstance(text, str):
            text = _SURROGATE.sub("\ufffd", text)
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        calls = message.get("tool_calls") or []
        if not isinstance(text, str) or not isinstance(calls, list) or not isinstance(reasoning, str):
            raise TypeError("content, reasoning or tool_calls have the wrong type")
        usage = body.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt, completion = (count if type(count) is int and count >= 0 else None for count in counts)
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unreachable(
            f"the reply is no chat completion ({type(error).__name__}: {error}): {str(body)[:120]!r}"[:400]
        ) from error
    read = tuple(_call(item, turn, index) for index, item in enumerate(calls[:MAX_CALLS]))
    history: dict[str, Any] = {"role": "assistant", "content": text}
    if read:
        history["tool_calls"] = [_echo(call) for call in read]
    return ChatReply(
        text=text,
        reasoning=reasoning,
        calls=read,
        message=history,
        finish_reason="length" if finish == "length" else "stop",
        prompt_tokens=prompt,
        completion_tokens=completion,
    )


def _call(item: Any, turn: int, index: int) -> ChatCall:
    given = item.get("id") if isinstance(item, dict) else None
    call_id = given if isinstance(given, str) and given else f"call_{turn}_{index}"
    function = item.get("function") if isinstance(item, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        return ChatCall(call_id, MalformedCall("This tool call names no function."))
    raw = function.get("arguments")
    try:
        arguments = json.loads(raw) if isinstance(raw, str) and raw.strip() else (raw or {})
        json.dumps(arguments, allow_nan=False)  # NaN and 1e999 are no JSON, whatever Python thinks
    except (ValueError, RecursionError) as error:
        reason = (
            f"The arguments of {name[:80]} are not valid JSON ({str(error)[:200]}). Write one JSON object."
        )
        return ChatCall(call_id, MalformedCall(reason))
    if not isinstance(arguments, dict):
        reason = f"The arguments of {name[:80]} are not a JSON object. Write them as one."
        return ChatCall(call_id, MalformedCall(reason))
    return ChatCall(call_id, ToolCall(name, arguments))


def _echo(call: ChatCall) -> dict[str, Any]:
    """The call for the history. Servers parse it again, so a malformed one stands there without arguments."""
    if isinstance(call.call, ToolCall):
        function = {"name": call.call.name, "arguments": json.dumps(dict(call.call.arguments))}
    else:
        function = {"name": "malformed", "arguments": "{}"}
    return {"id": call.id, "type": "function", "function": function}

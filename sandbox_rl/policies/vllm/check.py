"""Whether a vLLM server can serve this policy: one line for everything that does not fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sandbox_rl.errors import ModelError, SetupError
from sandbox_rl.http_client import Refused, Unreachable
from sandbox_rl.policies.vllm.api import CONTROL_TIMEOUT_S, VLLMServer

SUPPORTED = ((0, 26), (0, 33))
"""vLLM from the first up to, not including, the second; the routes and fields we use were read in both."""

CONVERSATIONS = (
    ("What is 2 + 2?", "4", "Thanks."),
    ("Hello",),
    ("  spaces around  ", "\n\nlines\n", "\ttab"),
    ("Größe, naïve, Ελληνικά, 日本語, العربية", "🙂👩‍🔬", "e\u0301 and \u00e9"),
    ("1234567890 3.14159 -0.5e-10", "def f(x):\n    return x**2  # a comment", '{"a": [1, 2]}'),
    ("a" * 300, "&lt;b&gt; ?!...", "`x` \\n"),
)
"""What users and assistants say in turn; of what templates and tokenizers are known to treat differently."""
PROBE_IDS = 4_096
"""Ids that are decoded by one request."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says about itself.

    Args:
        dtype: of its weights, as torch names it without `torch.`.
    """

    served_model: str
    max_context: int
    dtype: str


class TokenizerProbe(Protocol):
    """The tokenizer on our side (a Hugging Face one fits)."""

    def __len__(self) -> int: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Text of ids."""
        ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, return_dict: bool
    ) -> list[int]:
        """Ids of a conversation."""
        ...


async def check_server(server: VLLMServer, *, needed_context: int, engine: str | None = None) -> ServerFacts:
    """Version, developer routes, log-probs, weight transfer, metrics and context.

    Args:
        needed_context: tokens that the longest prompt and one turn take.
        engine: vLLM's name of the weight transfer that will be used; None where nothing is published.

    Raises:
        SetupError: the first thing that does not fit.
    """
    where = f"vLLM server {server.address}"
    try:
        version = str((await server.call("GET", "/version"))["version"])
        models = (await server.call("GET", "/v1/models"))["data"]
    except (Refused, Unreachable, TypeError, KeyError) as error:
        raise SetupError(f"{where}: no vLLM answers there ({error}); start one, or fix base_urls") from error
    low, high = SUPPORTED
    if not low <= _numbers(version) < high:
        raise SetupError(
            f"{where}: version {version}, expected {low[0]}.{low[1]} or newer and older than "
            f"{high[0]}.{high[1]}; install a vLLM of these"
        )
    if not models:
        raise SetupError(f"{where}: it serves no model; start it with --model")
    try:
        info = await server.call("GET", "/server_info", query={"config_format": "json"})
        config = info["vllm_config"]
        model = config["model_config"]
    except Refused as error:
        raise SetupError(
            f"{where}: its developer routes are off, so no weights can get in; start it with "
            "VLLM_SERVER_DEV_MODE=1, and on a private network only"
        ) from error
    except (Unreachable, TypeError, KeyError) as error:
        raise SetupError(f"{where}: /server_info cannot be read ({error})") from error
    if model.get("logprobs_mode") != "processed_logprobs":
        raise SetupError(
            f"{where}: logprobs_mode {model.get('logprobs_mode')!r}, expected 'processed_logprobs', the "
            "distribution that is sampled from; start it with --logprobs-mode processed_logprobs"
        )
    backend = (config.get("weight_transfer_config") or {}).get("backend")
    if engine is not None and backend != engine:
        raise SetupError(
            f"{where}: its weight transfer is {backend!r}, expected {engine!r}; start it with "
            f"""--weight-transfer-config '{{"backend":"{engine}"}}', or set policy.transfer"""
        )
    try:
        await server.engine_counts(timeout=CONTROL_TIMEOUT_S)
    except (Refused, Unreachable) as error:
        raise SetupError(
            f"{where}: its metrics do not tell whether its engine works ({error}); start it without "
            "--disable-log-stats"
        ) from error
    context = int(models[0]["max_model_len"])
    if context < needed_context:
        raise SetupError(
            f"{where}: its context is {context} tokens, expected at least {needed_context} for the longest "
            "prompt and one turn; raise --max-model-len (policy.arguments.max-model-len)"
        )
    return ServerFacts(str(models[0]["id"]), context, str(model["dtype"]).removeprefix("torch."))


async def check_tokenizer(server: VLLMServer, served_model: str, tokenizer: TokenizerProbe) -> None:
    """That ids mean the same on both sides: the whole vocabulary, and rendered conversations.

    Raises:
        ModelError: naming the first id that differs, or the first position of the conversation.
    """
    where = f"vLLM server {server.address}"
    for first in range(0, len(tokenizer), PROBE_IDS):
        ids = list(range(first, min(first + PROBE_IDS, len(tokenizer))))
        if await _decoded(server, served_model, ids) == tokenizer.decode(ids):
            continue
        for token_id in ids:
            theirs = await _decoded(server, served_model, [token_id])
            ours = tokenizer.decode([token_id])
            if theirs != ours:
                raise ModelError(
                    f"{where}: another tokenizer: id {token_id} is {theirs!r} there and {ours!r} here; "
                    "serve the model that model.path names"
                )
    for conversation in CONVERSATIONS:
        await _check_conversation(server, served_model, tokenizer, conversation)


async def _check_conversation(
    server: VLLMServer, served_model: str, tokenizer: TokenizerProbe, said: Sequence[str]
) -> None:
    where = f"vLLM server {server.address}"
    conversation = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    body = {"model": served_model, "messages": conversation, "add_generation_prompt": True}
    try:
        theirs_ids: list[int] = (await server.call("POST", "/tokenize", body))["tokens"]
    except (Refused, Unreachable, TypeError, KeyError) as error:
        raise ModelError(f"{where}: its chat template cannot be used ({error})") from error
    ours_ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    if list(theirs_ids) != list(ours_ids):
        at = _first_difference(theirs_ids, ours_ids)
        raise ModelError(
            f"{where}: another chat template: token {at} of a conversation is "
            f"{_token(tokenizer, theirs_ids, at)} there and {_token(tokenizer, ours_ids, at)} here; serve "
            "the model that model.path names"
        )


async def _decoded(server: VLLMServer, served_model: str, ids: Sequence[int]) -> str:
    try:
        answer = await server.call("POST", "/detokenize", {"model": served_model, "tokens": list(ids)})
        return str(answer["prompt"])
    except Refused:
        return "<refused>"  # an id beyond its vocabulary
    except (Unreachable, TypeError, KeyError) as error:
        raise ModelError(f"vLLM server {server.address}: its tokenizer cannot be read ({error})") from error


def _first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _token(tokenizer: TokenizerProbe, ids: Sequence[int], at: int) -> str:
    return repr(tokenizer.decode([ids[at]])) if at < len(ids) else "the end"


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int(re.sub(r"\D", "", part) or 0) for part in parts)

"""Settings of the policy engines, distinguished by `type`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sandbox_rl.registry import Registry
from sandbox_rl.settings import ByType, Settings

_OURS = {
    "model": "set model.path",
    "served-model-name": "leave it; the served name is ours",
    "host": "leave it; a managed server listens on a private unix socket",
    "port": "leave it; a managed server listens on a private unix socket",
    "uds": "leave it; the socket is ours",
    "logprobs-mode": "leave it; training needs the log-probs of the distribution sampled from",
    "weight-transfer-config": "set policy.transfer",
    "enable-sleep-mode": "set policy.sleep",
    "worker-extension-cls": "leave it; it loads and verifies our weights",
    "disable-log-stats": "leave it; whether the engine works is seen by its metrics",
    "generation-config": "leave it; sampling is the recipe's alone",
    "config": "write here what that file says; the placement has to know it",
}
"""Arguments of the server that the recipe says elsewhere, and where."""
_PARALLEL = (
    *("tensor-parallel-size", "pipeline-parallel-size"),  # divide the weights
    *("data-parallel-size", "prefill-context-parallel-size"),
)
_CACHE, _SHARE = "kv-cache-memory-bytes", "gpu-memory-utilization"
_PLANNED = (*_OURS, *_PARALLEL, _CACHE, _SHARE)
"""Arguments that are looked at here; vLLM would take each by its beginning as well."""


class TransformersSettings(Settings):
    """The model samples in the trainer's own process: for small models and machines without a GPU."""

    type: Literal["transformers"] = "transformers"
    max_batch: int = Field(64, ge=1)
    """Turns that are sampled together at most."""
    max_delay_s: float = Field(0.05, ge=0)
    """How long a turn waits for others to join its batch."""
    mismatch_alarm: float = Field(0.1, gt=0)
    """Warn when sampler and trainer differ by more than this on average per token (nats)."""


class VLLMSettings(Settings):
    """The model samples in a vLLM server that we start and watch, or in servers that are there already."""

    type: Literal["vllm"]
    engine: Literal["managed", "external"] = "managed"
    """`managed`: a child of this run. `external`: `base_urls`, started by someone else."""
    placement: Literal["auto", "one", "shared", "split"] = "auto"
    """Where managed servers run. `one`: on the single card that trains. `shared`: on each card that trains.
    `split`: on the cards that do not. `auto`: `split` where cards are left and it fits, else on those that
    train; on the CPU without a card (docs/vllm.md)."""
    servers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Managed servers, each a process of its own. `auto`: as many as `placement` has cards for, one without
    a card."""
    base_urls: tuple[Annotated[str, Field(pattern=r"^(https?://[^/\s]+|unix:///\S+)$")], ...] = ()
    """Of external servers, e.g. http://10.0.0.5:8000 or unix:///run/vllm/http. They must run with
    VLLM_SERVER_DEV_MODE=1, the worker extension and the transfer's weight-transfer-config (docs/vllm.md):
    never expose them."""
    python: str | None = None
    """Interpreter that has vLLM; otherwise $SANDBOX_RL_VLLM_PYTHON, otherwise the one that runs this."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the managed server as `vllm serve` names them, without the dashes: `max-num-seqs: 128`.
    True is a bare flag, False its `--no-` form, a mapping is passed as JSON."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of the managed server, e.g. {CUDA_VISIBLE_DEVICES: "1"} for a card of its own."""
    startup_timeout_s: float = Field(900.0, gt=0)
    """Seconds within which a server must answer after its start."""
    request_timeout_s: float = Field(600.0, gt=0)
    """Seconds that one turn may take in the server; shorter than an episode."""
    stalled_s: float = Field(300.0, gt=0)
    """Seconds without a token, read or sampled, while turns wait, after which a server's engine counts as
    hung, whatever the server says of itself."""
    retries: int = Field(4, ge=0)
    """Further tries of a turn whose request failed on the server's side."""
    backoff_s: float = Field(0.5, ge=0)
    """First wait before a retry; doubles each time, with jitter."""
    outage_s: float = Field(1800.0, ge=0)
    """Seconds for which tries go on while the server answers nobody: it is away, hangs or fails all."""
    restarts: int = Field(3, ge=0)
    """How often a managed server that died is started again, with the newest weights."""
    transfer: Literal["auto", "shm", "ipc", "nccl", "gloo"] = "auto"
    """How weights get in. `shm`: shared memory of one host. `ipc`: CUDA handles on one shared GPU. `nccl`:
    between GPUs, of other hosts too. `gloo`: over TCP, for other hosts without a way for NCCL.
    `auto`: of managed servers `ipc` on cards that train, `nccl` on others; else `shm`."""
    sleep: bool | Literal["auto"] = "auto"
    """Managed servers give their GPU memory back while the trainer updates and get the weights when they
    wake, in `mode: sync` only. `auto`: where both do not fit on one card."""
    mismatch_alarm: float = Field(0.1, gt=0)
    """Warn when sampler and trainer differ by more than this on average per token (nats)."""

    @model_validator(mode="after")
    def _consistent(self) -> VLLMSettings:
        if (self.engine == "external") != bool(self.base_urls):
            raise ValueError(
                f"engine {self.engine!r} with {len(self.base_urls)} base_urls; expected base_urls with "
                "'external' and none with 'managed'"
            )
        if self.engine == "external":
            self._refuse_for_external()
        for name, value in self.arguments.items():
            plain = name.replace("_", "-").lstrip("-").removeprefix("no-")
            if plain in _OURS:
                raise ValueError(f"arguments: {name!r} belongs elsewhere: {_OURS[plain]}")
            if name != name.lstrip("-"):
                raise ValueError(f"arguments: {name!r}, expected the name without dashes in front")
            if whole := [known for known in _PLANNED if known.startswith(plain) and known != plain]:
                raise ValueError(f"arguments: {name!r}, expected a whole name: {' or '.join(whole)}")
            if plain == _CACHE and (type(value) is not int or value < 1):
                raise ValueError(f"arguments: {name!r} is {value!r}, expected a number of bytes, 1 or more")
            if plain == _SHARE and not (type(value) in (int, float) and 0 < value <= 1):
                raise ValueError(f"arguments: {name!r} is {value!r}, expected a number above 0, at most 1")
            if plain in _PARALLEL and (type(value) is not int or value < 1):
                raise ValueError(f"arguments: {name!r} is {value!r}, expected a number of cards, 1 or more")
        return self

    @property
    def plain_arguments(self) -> dict[str, Any]:
        """`arguments` by their names with dashes, as vLLM has them."""
        return {name.replace("_", "-"): value for name, value in self.arguments.items()}

    @property
    def shards(self) -> int:
        """Cards that a managed server's weights are divided over."""
        return math.prod(self._size(name) for name in _PARALLEL[:2])

    @property
    def tensor_parallel(self) -> int:
        """Cards that each of a managed server's layers is divided over."""
        return self._size(_PARALLEL[0])

    @property
    def cards_each(self) -> int:
        """Of a managed server."""
        return math.prod(self._size(name) for name in _PARALLEL)

    @property
    def share(self) -> float | None:
        """Of each card's memory for a managed server, where the recipe says it."""
        given = self.plain_arguments.get(_SHARE)
        return None if given is None else float(given)

    @property
    def cache(self) -> int | None:
        """Bytes of keys and values on each card of a managed server, where the recipe says it; vLLM does not
        look at its share of the memory then."""
        given = self.plain_arguments.get(_CACHE)
        return None if given is None else int(given)

    def without_sizes(self, *, also: bool = False) -> VLLMSettings:
        """The same with what a placement says by itself left to it.

        Args:
            also: over how many cards a server is divided, too.
        """
        gone = (_SHARE, _CACHE, *(_PARALLEL if also else ()))
        arguments = {name: value for name, value in self.plain_arguments.items() if name not in gone}
        auto = {"placement": "auto", "servers": "auto", "transfer": "auto", "arguments": arguments}
        return self.model_copy(update=auto)

    def _size(self, name: str) -> int:
        return int(self.plain_arguments.get(name, 1))

    def _refuse_for_external(self) -> None:
        if self.sleep is True:
            raise ValueError("sleep: true, expected false with engine 'external', whose memory is not ours")
        for field, value in (("placement", self.placement), ("servers", self.servers)):
            if value != "auto":
                raise ValueError(f"{field}: {value!r}, expected none with engine 'external': see base_urls")
        for field, given in (("arguments", self.arguments), ("environment", self.environment)):
            if given:
                raise ValueError(
                    f"{field}: {given!r}, expected none with engine 'external': servers have them from "
                    "whoever starts them"
                )
        if twice := {url for url in self.base_urls if self.base_urls.count(url) > 1}:
            raise ValueError(f"base_urls: {min(twice)!r} stands there twice, expected each server once")


class RecordedPolicySettings(Settings):
    """Nothing is sampled: every turn is what the run of a journal sampled, with its log-probs."""

    type: Literal["recorded"]
    journal: Path
    """A run's directory, or its journal, relative to the working directory."""
    mismatch_alarm: float = Field(0.1, gt=0)
    """Warn when sampler and trainer differ by more than this on average per token (nats)."""


PolicySettings = Annotated[
    TransformersSettings | VLLMSettings | RecordedPolicySettings,
    ByType(
        Registry(
            "policy engine",
            {"transformers": TransformersSettings, "vllm": VLLMSettings, "recorded": RecordedPolicySettings},
        ),
        default="transformers",
    ),
]
"""Any engine, distinguished by `type`."""

"""Worker side of the weight transfer: a `shm` engine, and a look at what a worker holds.

`--worker-extension-cls sandbox_rl_vllm.WorkerExtension` imports this module in every worker before the
worker makes its transfer engine; that registers `shm` and `process_group`. Needs vLLM 0.26 to 0.32.
"""

import ctypes
import json
import zlib
from contextlib import suppress
from dataclasses import dataclass

import torch
from safetensors import safe_open
from sandbox_rl_group import Reloading  # and with it the engine of the other transfer
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory


@dataclass
class ShmInit(WeightTransferInitInfo):
    """Nothing to agree upon."""


@dataclass
class ShmUpdate(WeightTransferUpdateInfo):
    """Where the weights lie.

    Args:
        path: a safetensors file with checkpoint names, e.g. /proc/PID/fd/N of the trainer.
    """

    path: str = ""


class ShmEngine(Reloading, WeightTransferEngine[ShmInit, ShmUpdate]):
    """Loads a safetensors file that the trainer holds in shared memory."""

    init_info_cls = ShmInit
    update_info_cls = ShmUpdate

    def init_transfer_engine(self, init_info):
        """Nothing to set up."""

    def receive_weights(self, update_info):
        """Load the file named by `update_info`, already parsed."""
        self.model.load_weights(_tensors(update_info.path))

    def shutdown(self):
        """Nothing to free."""


def _tensors(path):
    """(name, tensor) of a safetensors file, one at a time: the weights are not held twice beside the file."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (no dict)
            yield name, file.get_tensor(name)


if "shm" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("shm", ShmEngine)


FROZEN = {}
"""Of requests that were frozen, by the id that the client gave: [tokens by then, version after] each time."""
STARTED = {}
"""Of requests, by the id that the client gave: version of the weights that they began with. One that waited
for a slot while weights were published was not frozen, and begins with the new ones."""
KEPT = 65_536
"""Requests in `FROZEN` and in `STARTED`, the newest."""


class WorkerExtension:
    """Methods that every worker gains; called through /collective_rpc, hence the prefix."""

    def sandbox_rl_frozen(self, version):
        """Note how many tokens each request has, now that all are frozen and get weights of `version`."""
        for name, tokens in _sampled(self.model_runner).items():
            FROZEN.setdefault(_given_id(name), []).append([tokens, int(version)])
        _forget(FROZEN)
        _note_starts(self.model_runner, int(version))
        return {}

    def sandbox_rl_switches(self, given_id):
        """[tokens by then, version after] of a request's beginning, if known, and of what froze it."""
        began = STARTED.pop(given_id, None)
        return [*([] if began is None else [[0, began]]), *FROZEN.pop(given_id, [])]

    def sandbox_rl_load(self, paths):
        """Load safetensors files outside of any transfer: a server that was started again gets them so.

        Args:
            paths: JSON list, e.g. ["/proc/PID/fd/N"] of the trainer; together they have all weights.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        model = self.model_runner.model
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            for path in json.loads(paths):
                model.load_weights(_tensors(path))
            finalize_layerwise_reload(model, self.model_config)
        return {}

    def sandbox_rl_after_update(self):
        """Repair a tied head, which updates of vLLM 0.31 and 0.32 leave stale on CPUs.

        Its repacked copy is made from the embedding once and never again. And what loading and sampling have
        freed goes back to the system, which the trainer's update is about to need.
        """
        if self.device.type == "cpu":
            with suppress(OSError, AttributeError):  # another C library
                ctypes.CDLL("libc.so.6").malloc_trim(0)
        model = self.model_runner.model
        head = getattr(model, "lm_head", None)
        embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
        method = getattr(head, "quant_method", None)
        if head is None or embedding is None or head is embedding or method is None:
            return {"repacked": False}
        # Storage, not a flag: what counts is that the head reads the embedding's memory.
        if head.weight.data_ptr() != embedding.weight.data_ptr() or head.weight.device.type != "cpu":
            return {"repacked": False}
        method.process_weights_after_loading(head)
        return {"repacked": True}

    def sandbox_rl_version(self, version=None):
        """The number of the weights that this worker was given, which it is told once they are verified.

        A server that was started again was told none, however well it answers. In a dict, since the route
        makes text of numbers.
        """
        if version is not None:
            self._sandbox_rl_version = int(version)
            _note_starts(self.model_runner, int(version))
        return {"version": getattr(self, "_sandbox_rl_version", None)}

    def sandbox_rl_card(self):
        """UUID of this worker's card, None without one: NCCL refuses two ranks on one card."""
        device = self.device
        return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None

    def sandbox_rl_checksums(self, wanted):
        """Checksums of parameters that vLLM holds under their checkpoint name.

        Args:
            wanted: JSON object, parameter name → how many leading rows; vocabularies are padded.

        Returns:
            name → CRC-32 of the rows' bytes, of those that this worker has in one piece.
        """
        rows = json.loads(wanted)
        found = {}
        for name, parameter in self.model_runner.model.named_parameters():
            if name in rows and parameter.shape[0] >= rows[name]:
                part = parameter.detach()[: rows[name]].to("cpu").contiguous()
                found[name] = [list(part.shape), zlib.crc32(part.view(torch.uint8).numpy())]
        return found


def _note_starts(runner, version):
    """From now on, note of each request that is computed for the first time that it begins with `version`."""
    known = getattr(runner, "sandbox_rl_version", None)
    runner.sandbox_rl_version = version
    if known is not None:
        return
    execute = runner.execute_model

    def noting(scheduled, *args, **kwargs):
        for request in scheduled.scheduled_new_reqs:
            STARTED.setdefault(_given_id(request.req_id), runner.sandbox_rl_version)
        _forget(STARTED)
        return execute(scheduled, *args, **kwargs)

    runner.execute_model = noting


def _forget(notes):
    while len(notes) > KEPT:
        del notes[next(iter(notes))]


def _sampled(runner):
    """Request id → tokens sampled so far, of the requests that a model runner has."""
    if hasattr(runner, "requests"):
        return {name: len(state.output_token_ids) for name, state in runner.requests.items()}
    states = runner.req_states  # of vLLM's second model runner
    totals, prompts = states.total_len.gpu.tolist(), states.prompt_len.np
    return {name: totals[at] - int(prompts[at]) for name, at in states.req_id_to_index.items()}


def _given_id(name):
    """The id that the client gave: vLLM makes cmpl-ID-0-RANDOM of it."""
    return name.removeprefix("cmpl-").partition("-")[0]

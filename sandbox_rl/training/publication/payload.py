"""The forms of weights on their way to a server: a safetensors file, CUDA handles, checksums of some."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch

VERIFIED_TENSORS = 8
VERIFIED_ROWS = 256
"""Of each verified tensor at most; norms are one-dimensional and shorter or about as long."""


_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


Checksums = Mapping[str, tuple[list[int], int]]
"""Tensor name → shape of its checked rows, and their CRC-32."""


def write_safetensors(tensors: Mapping[str, torch.Tensor], writer: BinaryIO) -> None:
    """The safetensors format, tensor by tensor: the library writes beside a path or into one more copy.

    Eight bytes with the header's length, the header as JSON, then the tensors' bytes
    (https://huggingface.co/docs/safetensors).
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    writer.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        writer.write(tensor.to("cpu").reshape(-1).view(torch.uint8).numpy().data)


def checksums_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[list[int], int]]:
    """Of the embedding and of norms spread over the depth: what servers keep unfused, under its own name."""
    candidates = [n for n in tensors if "norm" in n or n.endswith("embed_tokens.weight")]
    chosen = candidates[:: max(1, len(candidates) // VERIFIED_TENSORS)]
    found: dict[str, tuple[list[int], int]] = {}
    for name in chosen:
        part = tensors[name][:VERIFIED_ROWS].to("cpu").contiguous()
        found[name] = (list(part.shape), zlib.crc32(part.view(torch.uint8).numpy().data))
    return found


def cuda_handles(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The update that vLLM's `ipc` engine takes. The tensors must live until it has copied them.

    One handle per tensor, keyed by the card's UUID, pickled and base64-encoded (vLLM 0.26 to 0.32,
    `IPCWeightTransferUpdateInfo`).
    """
    reduce_tensor: Any = torch.multiprocessing.reductions.reduce_tensor

    card = card_uuid(next(iter(tensors.values())).device)
    handles = [{card: reduce_tensor(tensor)[1]} for tensor in tensors.values()]
    return {
        "names": list(tensors),
        "dtype_names": [str(t.dtype).removeprefix("torch.") for t in tensors.values()],
        "shapes": [list(t.shape) for t in tensors.values()],
        "ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode(),
    }


def card_uuid(device: torch.device | int | None = None) -> str | None:
    """Of a card, by default that of this thread; None without one."""
    if not torch.cuda.is_available():
        return None
    chosen = torch.cuda.current_device() if device is None else device
    return str(torch.cuda.get_device_properties(chosen).uuid)

"""The other end of a process group that weights are sent by, as the plug-in's worker has it."""

from __future__ import annotations

from typing import Any

import torch


class GroupWorker:
    """Joins the group that it is asked into, and receives tensors: `FakeVLLM(instead=worker.routes)`."""

    def __init__(self) -> None:
        self.init: dict[str, Any] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.routes = {"/init_weight_transfer_engine": self.join, "/update_weights": self.receive}

    def join(self, body: dict[str, Any]) -> None:
        self.init = init = body["init_info"]
        store = torch.distributed.TCPStore(init["host"], init["port"], None, False)
        store = torch.distributed.PrefixStore(init["group"], store)
        self.group = torch.distributed.ProcessGroupGloo(store, init["first_rank"], init["size"])

    def receive(self, body: dict[str, Any]) -> None:
        update = body["update_info"]
        for name, dtype, shape in zip(update["names"], update["dtypes"], update["shapes"], strict=True):
            self.tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            self.group.broadcast(self.tensors[name], 0).wait()

"""Worker side of the transfers `nccl` and `gloo`: weights arrive over a process group, tensor by tensor.

A group of torch's own, because both ends have torch and only this one has vLLM. The trainer is rank 0.
"""

import datetime
import socket
from dataclasses import dataclass, field

import torch
from torch.distributed import PrefixStore, TCPStore
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory


@dataclass
class GroupInit(WeightTransferInitInfo):
    """Where the trainer waits.

    Args:
        host, port: of its store.
        group: name of this meeting; a store may see several.
        backend: `nccl` or `gloo`.
        first_rank: of this server's workers.
        size: all workers of all servers, and the trainer.
        timeout_s: of every operation.
    """

    host: str
    port: int
    group: str
    backend: str
    first_rank: int
    size: int
    timeout_s: float


@dataclass
class GroupUpdate(WeightTransferUpdateInfo):
    """What is sent, in its order."""

    names: list = field(default_factory=list)
    dtypes: list = field(default_factory=list)
    shapes: list = field(default_factory=list)


class Reloading:
    """What the engines of both transfers do around the weights' arrival; named before vLLM's class."""

    def start_weight_update(self):
        """Make parameters loadable again: kernels may have repacked them after the first load."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info):
        """Load what `update_info` names."""
        self.receive_weights(self.parse_update_info(update_info))

    def finish_weight_update(self):
        """Repack what the kernels want repacked."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    @staticmethod
    def trainer_send_weights(iterator, trainer_args):
        """Abstract before vLLM 0.28; the trainer has an end of its own."""
        raise NotImplementedError


class GroupEngine(Reloading, WeightTransferEngine[GroupInit, GroupUpdate]):
    """Receives broadcasts of the trainer."""

    init_info_cls = GroupInit
    update_info_cls = GroupUpdate
    group = None

    def init_transfer_engine(self, init_info):
        """Meet the trainer and the other workers; blocks until all are there."""
        self.group = None
        parallel = self.parallel_config
        rank = init_info.first_rank + parallel.data_parallel_index * parallel.world_size + parallel.rank
        timeout = datetime.timedelta(seconds=init_info.timeout_s)
        store = PrefixStore(init_info.group, TCPStore(init_info.host, init_info.port, None, False, timeout))
        if init_info.backend == "nccl":
            torch.cuda.set_device(self.device)
            options = torch.distributed.ProcessGroupNCCL.Options()
            options._timeout = timeout
            self.group = torch.distributed.ProcessGroupNCCL(store, rank, init_info.size, options)
        else:
            gloo = torch.distributed.ProcessGroupGloo
            options = gloo._Options()
            options._timeout = timeout
            options._devices = [gloo.create_device(hostname=_own_address(init_info.host, init_info.port))]
            self.group = gloo(store, rank, init_info.size, options)
        self.on_card = init_info.backend == "nccl"

    def receive_weights(self, update_info):
        """Receive what `update_info` names, already parsed."""
        if self.group is None:
            raise RuntimeError("the process group is gone; the trainer has to make a new one")
        arriving = self._arriving(update_info)
        try:
            self.model.load_weights(arriving)
            for _ in arriving:
                pass  # what the model did not ask for is sent all the same
        except BaseException:
            self.group = None  # closes the connection: the trainer must not wait for us
            raise

    def _arriving(self, update_info):
        where = self.device if self.on_card else torch.device("cpu")
        for name, dtype, shape in zip(update_info.names, update_info.dtypes, update_info.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=where)
            self.group.broadcast(tensor, 0).wait()
            yield name, tensor

    def shutdown(self):
        """Leave the group."""
        self.group = None


def _own_address(host, port):
    """Of the interface that leads to the trainer; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return probe.getsockname()[0]


if "process_group" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("process_group", GroupEngine)

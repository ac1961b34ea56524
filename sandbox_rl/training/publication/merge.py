"""The weights of a model as a server of its base model loads them, LoRA adapters folded in.

Nothing of the model is changed. Merging in place and undoing it afterwards, as peft offers, would round a
bfloat16 base twice per publication: the frozen weights would drift away from the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from torch.distributed.tensor import DTensor

from sandbox_rl.errors import ModelError


def checkpoint_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """`(name in the base model's checkpoint, whole tensor)` of every weight a server loads, one at a time.

    Of tied weights the first one comes, as in a checkpoint. A shard is gathered from all ranks
    (`whole_tensor`), so every rank must exhaust this. A weight with adapters comes as a new float32 tensor;
    any other may share the model's memory.

    Raises:
        ModelError: an adapter that cannot be folded into one weight.
    """
    if isinstance(model, PeftModel):
        yield from _merged(model)
        return
    for raw, parameter in model.named_parameters():
        yield _plain(raw), whole_tensor(parameter)


def _merged(model: PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    base = model.get_base_model()
    adapted: Mapping[str, BaseTunerLayer] = {
        n: m for n, m in base.named_modules() if isinstance(m, BaseTunerLayer)
    }
    _refuse_tied(base, adapted)
    for raw, parameter in base.named_parameters():
        layer_name, _, inner = raw.partition(".base_layer.")
        if inner:
            weight = _plain_weight(base, raw, parameter)
            layer = adapted[layer_name]
            if inner == "weight":
                weight = _with_adapters(weight, layer, layer_name)
            yield f"{_plain(layer_name)}.{inner}", weight
        elif ".original_module." in raw:
            continue  # trained in a copy, which comes below
        elif ".modules_to_save." in raw:
            owner, _, inner = raw.partition(".modules_to_save.")
            yield f"{_plain(owner)}.{inner.partition('.')[2]}", whole_tensor(parameter)
        elif not any(raw.startswith(f"{name}.") for name in adapted):  # else it is an adapter's
            yield _plain(raw), _plain_weight(base, raw, parameter)


def _plain_weight(base: nn.Module, raw: str, parameter: nn.Parameter) -> torch.Tensor:
    """The whole weight; a quantised one as the numbers that are computed with."""
    if parameter.is_floating_point():
        return whole_tensor(parameter)
    weight: torch.Tensor | None = dequantize_module_weight(base.get_submodule(raw.rpartition(".")[0]))
    if weight is None or not weight.is_floating_point():
        raise ModelError(
            f"model: {_plain(raw)} has weights of {parameter.dtype}, which a server cannot be given; load "
            "the model in bfloat16, or set model.quantization"
        )
    return weight.detach()


def _with_adapters(weight: torch.Tensor, layer: BaseTunerLayer, name: str) -> torch.Tensor:
    """`W + scaling · B A` in float32, of all active adapters."""
    merged = weight.to(torch.float32, copy=True)
    for adapter in layer.active_adapters:
        if getattr(layer, "use_dora", {}).get(adapter):
            raise ModelError(f"model.lora: {name} uses DoRA, which a served policy cannot; switch it off")
        with _gathered(p for name, p in layer.named_parameters() if not name.startswith("base_layer.")):
            merged += whole_tensor(layer.get_delta_weight(adapter)).float()
    return merged


def _refuse_tied(base: nn.Module, adapted: Mapping[str, BaseTunerLayer]) -> None:
    """An adapter on one of two tied weights has no place in a checkpoint that has the weight once."""
    names: dict[int, str] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        other = names.setdefault(id(parameter), name)
        if other != name and any(n.partition(".base_layer.")[0] in adapted for n in (other, name)):
            raise ModelError(
                f"model.lora.target_modules: {_plain(other.replace('.base_layer', ''))} and "
                f"{_plain(name.replace('.base_layer', ''))} are one tied weight, which a served policy keeps "
                "as one; leave both out"
            )


def _plain(name: str) -> str:
    """Without what data parallelism and activation checkpointing put into names."""
    return name.removeprefix("module.").replace("_checkpoint_wrapped_module.", "")


def divided(tensor: torch.Tensor) -> bool:
    """Whether processes have a part of it each: by FSDP2 (`DTensor`) or DeepSpeed's ZeRO-3."""
    return isinstance(tensor, DTensor) or hasattr(tensor, "ds_id")


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A weight without its gradient, gathered from all processes where it is divided; all must call this.

    What ZeRO-3 has gathered is a copy: the parameter itself is divided again before this returns.
    """
    if isinstance(tensor, DTensor):
        full: torch.Tensor = tensor.full_tensor()
        return full.detach()
    if divided(tensor):
        with _gathered([tensor]):
            return tensor.detach().clone()
    return tensor.detach()


def _gathered(parameters: Iterable[torch.Tensor]) -> AbstractContextManager[object]:
    """While open, parameters that ZeRO-3 has divided are whole; the others are as they were."""
    parts = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not parts:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    context: AbstractContextManager[object] = GatheredParameters(parts)
    return context

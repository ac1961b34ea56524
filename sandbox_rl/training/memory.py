"""How much device memory training takes, by formulas, before anything is loaded.

An estimate: allocators, kernels and communication buffers come on top, so 10 % are added. Sizes in bytes
unless named otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from trl import GRPOConfig

from sandbox_rl.training.config import ModelSettings

OVERHEAD = 1.1
"""Fragmentation and workspaces of kernels, a rule of thumb."""

LOGIT_TILE = (4096, 32_768)
"""Tokens and vocabulary entries of a tile of TRL 1.16's chunked log-probs."""

TILES = 1
"""Of them at once where TRL's Triton kernels work in place (CUDA, XPU)."""

TILES_TORCH = 8
"""Elsewhere its backward is written in torch, with a result for every operation (scripts/bench_long.py)."""

NF4_BITS = 4.127
"""Per weight, with the constants of its block, which are quantised too (arXiv 2305.14314, section 3)."""

MASTER = 4
"""Bytes of a value that the optimizer updates, and of its gradient: float32 (`precision`)."""

_STATE_BYTES = {"sgd": 0, "adafactor": 0, "lion_32bit": 4, "lion_8bit": 1}
"""Optimizers that do not keep two values per parameter; Adafactor's rows and columns are negligible."""

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a decoder-only transformer that memory depends on."""

    parameters: int
    linear_weights: int
    """Of `parameters`, those of all linear layers except the head."""
    linear_widths: int
    """Sum of inputs and outputs of all linear layers except the head: LoRA has r weights for each."""
    layers: int
    hidden: int
    query_width: int
    """Attention heads x head size."""
    kv_width: int
    """Key-value heads x head size."""
    mlp_width: int
    """Intermediate size that a token passes through (active experts together)."""
    vocabulary: int


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one device. Training and sampling take turns; the larger of the two decides.

    Gradients are there while a forward pass runs, as those of earlier micro-batches or parts are.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    """Of the head's tiles after the forward pass, or of the layer gone through backwards: the larger."""
    kv_cache: int
    published: int = 0
    """A copy of the weights that servers have, where the device is the host; two while new ones are sent."""

    @property
    def training(self) -> int:
        """Peak of an update, with overhead."""
        held = self.weights + self.gradients + self.optimizer
        return int(OVERHEAD * (held + self.activations + self.workspace)) + self.published

    @property
    def held(self) -> int:
        """Of an update, what stays while a server samples, with overhead: gradients are gone then."""
        return int(OVERHEAD * (self.weights + self.optimizer))

    @property
    def sampling(self) -> int:
        """Peak between updates, with overhead: sampling in the trainer's process, or a publication."""
        return int(OVERHEAD * (self.weights + self.optimizer + self.kv_cache)) + 2 * self.published

    @property
    def peak(self) -> int:
        """The larger of both."""
        return max(self.training, self.sampling)

    def __str__(self) -> str:
        sizes = {field.name: getattr(self, field.name) for field in fields(self)}
        parts = ", ".join(f"{name} {_size(size)}" for name, size in sizes.items() if size)
        on_top = f"{OVERHEAD - 1:.0%} on top of what a process holds at once"
        return f"estimated {_size(self.peak)} per device ({parts.replace('_', ' ')}; {on_top})"


def model_shape(config: PretrainedConfig) -> ModelShape:
    """Read off a configuration; parameters are counted on the meta device, which allocates nothing."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    experts = getattr(text, "num_experts_per_tok", 0) or 0
    width = getattr(text, "moe_intermediate_size", text.intermediate_size) if experts else 0
    linear = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
    ]
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        linear_weights=sum(module.in_features * module.out_features for module in linear),
        linear_widths=sum(module.in_features + module.out_features for module in linear),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        query_width=heads * head,
        kv_width=(getattr(text, "num_key_value_heads", None) or heads) * head,
        mlp_width=experts * width if experts else text.intermediate_size,
        vocabulary=text.vocab_size,
    )


def estimate_memory(
    shape: ModelShape,
    args: GRPOConfig,
    model: ModelSettings,
    *,
    prompt_tokens: int,
    completion_tokens: int,
    sampled_rows: int,
    stored_dtype: torch.dtype = torch.float32,
    shards: int = 1,
    micro_batch_tokens: int | None = None,
    card: bool | None = None,
    served: bool = False,
    offloaded: bool = False,
) -> MemoryEstimate:
    """Estimate the peak of one device.

    Args:
        sampled_rows: sequences that the in-process policy samples together; 0 if it samples elsewhere.
        stored_dtype: of the checkpoint, which `dtype: auto` computes in.
        shards: devices that weights, gradients and optimizer are divided over (FSDP, ZeRO 3).
        micro_batch_tokens: as `update.micro_batch_tokens`.
        card: whether the device is one, also a made-up one; None for what `args` say.
        served: whether weights are published to servers.
        offloaded: whether the host has the optimizer with its float32 weights (DeepSpeed).
    """
    cpu = args.use_cpu if card is None else not card
    compute = (stored_dtype if model.dtype == "auto" else getattr(torch, model.dtype)).itemsize
    item = MASTER if model.lora is None and not offloaded else compute
    weights, trained = shape.parameters * item, shape.parameters
    if model.quantization is not None:
        weights -= int(shape.linear_weights * (item - NF4_BITS / 8))
    if model.lora is not None:
        # r·(in + out) weights for a linear layer (arXiv 2106.09685, 4.1), and all of them: an upper bound.
        trained = model.lora.r * shape.linear_widths
        weights += trained * MASTER
    elif getattr(args, "beta", 0.0):
        weights += shape.parameters * MASTER  # the reference
    row = prompt_tokens + completion_tokens
    # TRL's asynchronous trainer packs rows into `token_budget` tokens and has no rows per device.
    packed = getattr(args, "token_budget", None)
    tokens = max(packed, row) if packed else args.per_device_train_batch_size * row
    if micro_batch_tokens is not None:
        tokens = min(tokens, max(micro_batch_tokens, row))
    checkpointing = args.gradient_checkpointing or getattr(args, "activation_checkpointing", False)
    layer = layer_per_token(shape, compute, item)
    kept = shape.layers * (shape.hidden * compute if checkpointing else layer)
    at_hand = tokens * ((layer if checkpointing else 0) + 3 * shape.mlp_width * compute)
    logits = _logits(shape, tokens, cpu=cpu, head=model.lora is None)
    casts = _casts(shape, item, compute, shards=shards, checkpointing=checkpointing)
    return MemoryEstimate(
        weights=weights // shards,
        gradients=trained * (compute if offloaded else MASTER) // shards,
        optimizer=0 if offloaded else _optimizer(str(args.optim), trained, MASTER) // shards,
        activations=tokens * kept + casts,
        workspace=max(at_hand, logits),
        kv_cache=sampled_rows * row * kv_bytes_per_token(shape, compute),
        published=shape.parameters * compute if served and cpu else 0,
    )


def _casts(shape: ModelShape, item: int, compute: int, *, shards: int, checkpointing: bool) -> int:
    """Weights in the type computed in, beside those that are kept: until their layer's backward pass is over.

    Of a sharded model the layer at hand and the next one are gathered, with embedding and head.
    """
    layer = shape.linear_weights // shape.layers
    if shards > 1:
        return compute * 2 * layer + (compute + MASTER) * shape.vocabulary * shape.hidden
    if item == compute:
        return 0
    return compute * (layer if checkpointing else shape.linear_weights)


def _optimizer(name: str, trained: int, item: int) -> int:
    """Two moments per trained value, in its own type (torch's AdamW); one byte each in 8-bit optimizers."""
    name = name.rsplit(".", 1)[-1].lower()
    if name in _STATE_BYTES:
        return trained * _STATE_BYTES[name]
    return trained * 2 * (1 if "8bit" in name or "bnb" in name else item)


def layer_per_token(shape: ModelShape, compute: int, stored: int) -> int:
    """Bytes that a layer keeps of each token for its backward pass.

    With `c` bytes of the type computed in: the inputs of its two norms in float32 and five tensors as wide as
    the model (5c + 8); queries, keys and values before and after their norm and rotation, and the attention's
    output (3c + 4 each); gate, up, activation and product (4c). Weights of norms that are stored wider than
    computed with widen what comes out of them (8 more). Counted with autograd's own hooks in
    tests/unit/test_memory.py.

    With checkpointing only each layer's input is kept, and one layer at a time is computed again. While it is
    gone through backwards, gradients of gate, up and product stand beside it: `at_hand` above.
    """
    hidden = shape.hidden * (5 * compute + 8 + (8 if stored > compute else 0))
    attention = (shape.query_width + shape.kv_width) * (3 * compute + 4)
    return hidden + attention + 4 * shape.mlp_width * compute


def _logits(shape: ModelShape, tokens: int, *, cpu: bool, head: bool) -> int:
    """TRL 1.16 projects onto the vocabulary tile by tile, forward and again backward, here in float32.

    The first tile has its whole width for any vocabulary. Beside the tiles: the slice of the head that they
    are computed from, the last hidden states and their gradient, and the head's gradient where it is trained.
    """
    rows, whole = LOGIT_TILE
    rows, width = min(tokens, rows), min(shape.vocabulary, whole)
    tiles = rows * (whole + ((TILES_TORCH if cpu else TILES) - 1) * width)
    trained = shape.vocabulary * shape.hidden if head else 0
    return 4 * (tiles + (width + 2 * tokens) * shape.hidden + trained)


def kv_bytes_per_token(shape: ModelShape, item: int) -> int:
    """A key and a value per layer."""
    return 2 * shape.layers * shape.kv_width * item


def _size(count: int) -> str:
    if count >= GIB // 10:
        return f"{count / GIB:.1f} GiB"
    return f"{count / (1 << 20):.1f} MiB"

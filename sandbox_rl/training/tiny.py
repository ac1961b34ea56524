"""A policy small enough for a laptop: Qwen3's architecture with well under a million parameters.

Its tokenizer is trained on the spot, on conversations of the very tasks that it will work on, so that
a turn is a few dozen tokens. Digits stay single tokens: copying numbers is what such a model can
learn, arithmetic is what it needs the computer for.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CONTEXT = 1024
"""Longest sequence of the tiny model, in tokens."""
VOCABULARY = 768
"""Of its tokenizer, in tokens."""

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


def tiny_tokenizer(corpus: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens; without a corpus it has bytes and control tokens only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(_TAGS),
            special_tokens=list(_SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=CONTEXT,
    )
    # Qwen's tool tags are added tokens but not special ones; so are these.
    fast.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in _TAGS])
    fast.chat_template = (files("sandbox_rl.training") / "short_tools.jinja").read_text()
    return fast


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """The tiny model's shape."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # Copying numbers out of the question is what the warm-up must learn. With the usual 0.02 it
        # takes hundreds of steps more to appear, with a third layer likewise.
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_model(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> PreTrainedModel:
    """A freshly initialised model for `tokenizer`; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = Qwen3ForCausalLM(tiny_config(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model

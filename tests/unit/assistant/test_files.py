"""Files on their way in and out: nothing followed, nothing replaced, everything left out said."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_rl.assistant.files import SavedFiles, read_input, save_files, without_inputs
from sandbox_rl.errors import DataError

SMALL = 1 << 20


def tree(root):
    """Every path below `root` with its content (directories: None)."""
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))
    }


def test_regular_files_go_in_and_everything_else_is_named(tmp_path):
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"a")
    (root / "sub" / "b.bin").write_bytes(b"\0\xff")
    (root / ".env").write_text("KEY=1")
    (root / "sub" / ".git").mkdir()
    (root / "file_link").symlink_to("/etc/passwd")
    (root / "dir_link").symlink_to(tmp_path, target_is_directory=True)
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    (root / "new\nline").write_text("x")
    found = read_input(root, max_bytes=SMALL)
    assert found.files == {"a.txt": b"a", "sub/b.bin": b"\0\xff"}
    assert found.skipped == (
        ".env: hidden",
        "dangling: a link",
        "dir_link: a link",
        "file_link: a link",
        "new\nline: holds a control character",
        "pipe: not a regular file",
        "sub/.git: hidden",
    )


def test_one_file_and_an_empty_directory(tmp_path):
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("one.txt")
    assert read_input(tmp_path / "one.txt", max_bytes=SMALL).files == {"one.txt": b"1"}
    assert read_input(tmp_path / "link", max_bytes=SMALL).files == {"link": b"1"}
    assert read_input(tmp_path / "empty", max_bytes=SMALL).files == {}


def test_deep_directories_are_cut_off(tmp_path):
    deep = tmp_path.joinpath(*["d"] * 40)
    deep.mkdir(parents=True)
    (deep / "x").write_text("x")
    found = read_input(tmp_path, max_bytes=SMALL)
    assert found.files == {}
    assert found.skipped[0].endswith("more than 32 directories deep")


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("big", SMALL + 1, "more than 1 MiB together"), ("missing", None, "cannot be read (No such file")],
)
def test_what_cannot_go_in_is_reported_in_one_line(tmp_path, name, size, expected):
    if size is not None:
        (tmp_path / name).write_bytes(b"x" * size)
    with pytest.raises(DataError, match="--input") as told:
        read_input(tmp_path / name, max_bytes=SMALL)
    assert expected in str(told.value)
    assert "\n" not in str(told.value)


def test_the_limit_holds_for_all_files_together(tmp_path):
    for number in range(3):
        (tmp_path / str(number)).write_bytes(b"x" * 400_000)
    with pytest.raises(DataError):
        read_input(tmp_path, max_bytes=SMALL)
    (tmp_path / "2").unlink()
    found = read_input(tmp_path, max_bytes=SMALL)
    assert sum(map(len, found.files.values())) == 800_000


HOSTILE_NAMES = [
    "../escape",
    "/etc/escape",
    "a/../../escape",
    "",
    "a//b",
    ".",
    "a/.",
    ".bashrc",
    "sub/.ssh/authorized_keys",
    "nul\0",
    "esc\x1b[31m",
    "new\nline",
    "half\ud800",
    "n" * 256,
    "C:\\x",
    "-rf",
    "sub/--help",
    "photo_\u202egpj.exe",
    "etc\u2044passwd",
    "report\u2024pdf.exe",
    "re\u2066versed\u2069.txt",
    "zero\u200bwidth.txt",
    "joined\u200d.txt",
    "mark\ufeff.txt",
    "soft\u00adhyphen.txt",
    "no-break\u00a0space.txt",
    "line\u2028separator",
    "private\ue000use",
    "tag\U000e0041",
    "filler\u3164.txt",
    "selected\ufe0e.txt",
    " lead.txt",
    "trail.txt ",
    "dot.",
]


def test_hostile_names_stay_out(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    honest = {"ok.txt": b"y", "naïve – 答え, עברית.txt": b"y"}
    saved = save_files(out, dict.fromkeys(HOSTILE_NAMES, b"x") | honest)
    assert set(saved.written) == honest.keys()
    assert len(saved.left_out) == len(HOSTILE_NAMES)
    assert tree(tmp_path) == {"out": None} | {f"out/{name}": b"y" for name in honest}


@given(
    st.dictionaries(st.text(st.sampled_from("a./\\\0\n~-"), max_size=8), st.binary(max_size=3), max_size=6)
)
@settings(max_examples=150, deadline=None)
def test_no_name_whatsoever_leaves_the_directory(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("any")
    out = root / "out"
    out.mkdir()
    saved = save_files(out, files)
    assert len(saved.written) + len(saved.left_out) == len(files)
    assert [p.name for p in root.iterdir()] == ["out"]
    for name in saved.written:
        assert (out / name).read_bytes() == files[name]


def test_nothing_is_replaced_and_no_link_is_followed(tmp_path):
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("mine")
    (out / "mine.txt").write_text("mine")
    (out / "link.txt").symlink_to(outside / "kept")
    (out / "dangling.txt").symlink_to(outside / "made")
    (out / "dir").symlink_to(outside, target_is_directory=True)
    (out / "plain").write_text("mine")
    (out / "directory").mkdir()
    before = tree(tmp_path)
    names = ["mine.txt", "link.txt", "dangling.txt", "dir/kept", "dir/new", "plain/x", "directory"]
    saved = save_files(out, dict.fromkeys(names, b"theirs"))
    assert tree(tmp_path) == before
    assert saved.written == ()
    assert {line.split(": ")[1] for line in saved.left_out} == {
        "exists already, kept as it is",
        "a file or a link stands where its directory would be",
    }


def test_saved_files_are_not_executable(tmp_path):
    save_files(tmp_path, {"a/run.sh": b"#!/bin/sh\n"})
    assert not (tmp_path / "a" / "run.sh").stat().st_mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def test_an_output_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--output"):
        save_files(tmp_path / "file", {"a": b""})
    assert save_files(tmp_path, {}) == SavedFiles()


def test_unchanged_inputs_are_not_results():
    files = {"answer.txt": b"a", "documents/x": b"1", "documents/y": b"new", "documents/z": b"made"}
    inputs = {"x": b"1", "y": b"old"}
    assert without_inputs(files, inputs, below="documents") == {
        "answer.txt": b"a",
        "documents/y": b"new",
        "documents/z": b"made",
    }

"""A run as one file: it is what was packed, or it is told; what a stranger packed does nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
import zipfile

import pytest
from typer.testing import CliRunner

from sandbox_rl.cli import whole_app
from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.replay.bundle import bundle
from sandbox_rl.replay.verification import verify
from tests.journals import edit_lines


@pytest.fixture(scope="module")
def packed(scored_run, tmp_path_factory):
    return bundle(scored_run, tmp_path_factory.mktemp("bundles") / "r.zip")


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where bundles are unpacked, to see that nothing stays."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    assert list(directory.iterdir()) == []


def repacked(path, tmp_path, change):
    """The bundle with other members: `change` takes name → content and may change it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return other


def test_what_was_packed_is_verified_and_scored_again(scored_run, packed, tmp_path, scratch):
    before = {path: path.stat().st_mtime_ns for path in scored_run.rglob("*")}
    with zipfile.ZipFile(packed) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read("manifest.json"))
    journal = {"journal/0000-0000.jsonl", "journal/0000-0000.tokens"}
    assert names == journal | {"manifest.json", "recipe.yaml", "scoring.json", "tasks.jsonl"}
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert len(manifest["data"][0]["sha256"]) == 64
    done = CliRunner().invoke(whole_app(), ["verify", str(packed)])
    assert (done.exit_code, done.output) == (
        0,
        f"{packed}: all 5 files are what the manifest says\nledger: no update had finished\n"
        "10 episodes scored again: 10 the same, 0 other, 0 not judged; 0 left, whose scorer is not one of "
        "ours\n",
    )
    assert {path: path.stat().st_mtime_ns for path in scored_run.rglob("*")} == before


def test_a_bundle_needs_no_run_and_replaces_nothing(scored_run, packed, tmp_path):
    with pytest.raises(ConfigError, match="exists already"):
        bundle(scored_run, packed)
    with pytest.raises(ConfigError, match="no run here"):
        bundle(tmp_path)
    copy = tmp_path / "r"
    shutil.copytree(scored_run, copy)
    made = CliRunner().invoke(whole_app(), ["bundle", str(copy)])
    assert made.output == f"{tmp_path / 'r.bundle.zip'}\n"


@pytest.mark.parametrize("name", ["recipe.yaml", "journal/0000-0000.tokens", "tasks.jsonl"])
def test_a_changed_file_is_named(packed, tmp_path, name, scratch):
    def change(members):
        members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])

    other = repacked(packed, tmp_path, change)
    done = CliRunner().invoke(whole_app(), ["verify", str(other)])
    assert done.exit_code == 1
    assert done.output.startswith(f"{name}: ")
    assert "1 files are not what the manifest says, 4 are" in done.output


def test_files_that_are_missing_or_added_are_named(packed, tmp_path, scratch):
    def change(members):
        del members["scoring.json"]
        members["alarms.jsonl"] = b"{}\n"

    assert verify(repacked(packed, tmp_path, change)).wrong == (
        "alarms.jsonl: in the bundle, not in the manifest",
        "scoring.json: in the manifest, not in the bundle",
    )


def test_a_reward_that_the_answer_did_not_earn_is_found(scored_run, tmp_path, scratch):
    copy = tmp_path / "r"
    shutil.copytree(scored_run, copy)
    (lines,) = (copy / "journal").glob("*.jsonl")
    edit_lines(lines, b'"reward":1.0', b'"reward":0.9', 1)
    done = CliRunner().invoke(whole_app(), ["verify", str(bundle(copy))])
    assert done.exit_code == 1
    assert "train-000000-0000: reward 0.9 recorded, 1.0 now" in done.output
    assert "9 the same, 1 other" in done.output


@pytest.mark.parametrize("suffix", [".jsonl", ".tokens"])
def test_records_that_were_damaged_before_they_were_packed_are_found(scored_run, tmp_path, scratch, suffix):
    copy = tmp_path / "r"
    shutil.copytree(scored_run, copy)
    (path,) = (copy / "journal").glob(f"*{suffix}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = CliRunner().invoke(whole_app(), ["verify", str(bundle(copy))])
    assert done.exit_code == 1
    assert re.search(r"packed from damaged records: journal: .* (is|are) not the one|those", done.output)


def archive_of(*members, **how):
    """A zip with these (name or ZipInfo, content)."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return content.getvalue()


def link():
    info = zipfile.ZipInfo("recipe.yaml")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


MANIFEST = ("manifest.json", '{"bundle": 1, "files": {}}')
HOSTILE = {
    "parent": (archive_of(MANIFEST, ("../evil", "x")), r"member '\.\./evil', expected records of a run only"),
    "absolute": (archive_of(MANIFEST, ("/etc/evil", "x")), "member '/etc/evil'"),
    "inside": (archive_of(MANIFEST, ("journal/../../evil.jsonl", "x")), "member 'journal/"),
    "nul": (archive_of(MANIFEST, ("recipe.yamlX", "x")).replace(b"yamlX", b"yaml\0"), "member 'recipe"),
    "folder": (archive_of(MANIFEST, ("journal/", "")), "member 'journal/'"),
    "program": (archive_of(MANIFEST, ("scorer.py", "x")), "member 'scorer.py'"),
    "link": (archive_of(MANIFEST, (link(), "/etc/passwd")), "is a link or encrypted"),
    "twice": (
        archive_of(MANIFEST, ("recipe.yaml", "a"), ("tasks.jsonl", "b")).replace(
            b"tasks.jsonl", b"recipe.yaml"
        ),
        "is there twice",
    ),
    "bomb": (archive_of(MANIFEST, ("metrics.jsonl", bytes(200 << 20))), "it is made to fill a disk"),
    "no manifest": (archive_of(("recipe.yaml", "x")), "no manifest.json in it"),
    "newer": (archive_of(("manifest.json", '{"bundle": 9}')), "format 9, expected at most 1"),
    "deep": (archive_of(("manifest.json", "[" * 100_000)), "it is damaged, or no bundle"),
    "other": (archive_of(("manifest.json", '{"bundle": "x"}')), "it is damaged, or no bundle"),
    "list": (archive_of(("manifest.json", "[]")), "it is damaged, or no bundle"),
    "numbers": (
        archive_of(("manifest.json", '{"bundle": 1, "files": {"scoring.json": 3, "tasks.jsonl": 3}}')),
        "it is damaged, or no bundle",
    ),
    "empty": (archive_of(MANIFEST), "it has no scoring.json"),
    "text": (b"no zip at all", "it is damaged, or no bundle"),
    "nothing": (b"", "it is damaged, or no bundle"),
}


@pytest.mark.parametrize(("content", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_bundle_is_one_line_and_leaves_nothing(tmp_path, scratch, content, said):
    path = tmp_path / "hostile.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        verify(path)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"hostile.zip", "scratch"}


def test_names_in_a_manifest_do_not_control_the_terminal(packed, tmp_path, scratch):
    def change(members):
        manifest = json.loads(members["manifest.json"])
        manifest["files"]["\x1b]0;mine\x07\u202egpj"] = {"bytes": 1, "sha256": ""}
        members["manifest.json"] = json.dumps(manifest).encode()

    done = CliRunner().invoke(whole_app(), ["verify", str(repacked(packed, tmp_path, change))])
    assert done.exit_code == 1
    assert not set("\x1b\x07\u202e") & set(done.output)


def test_a_pipe_is_no_bundle(tmp_path, scratch):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="no file, expected a bundle"):
        verify(tmp_path / "pipe")


def test_a_cut_bundle_is_reported(packed, tmp_path, scratch):
    path = tmp_path / "cut.zip"
    path.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(DataError, match="it is damaged, or no bundle"):
        verify(path)
    with pytest.raises(DataError, match="No such file"):
        verify(tmp_path / "nowhere.zip")


def test_a_bundle_names_nothing_that_is_imported_or_asked(scored_run, tmp_path, scratch, monkeypatch):
    """Scorers of one's own, and a judge's address, are somebody's words."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef score(a, t): return 1.0\n")
    for change in ({"scorer": "evil:score"}, {"composite": {"evil:score": 1.0, "exact": 1.0}}):
        copy = tmp_path / f"r{len(list(tmp_path.iterdir()))}"
        shutil.copytree(scored_run, copy)
        made = bundle(copy)

        def told(members, change=change):
            scoring = json.loads(members["scoring.json"])
            scoring["reward"] |= change | {"isolation": "none"}
            members["scoring.json"] = json.dumps(scoring).encode()
            manifest = json.loads(members["manifest.json"])
            digest = hashlib.sha256(members["scoring.json"]).hexdigest()
            size = len(members["scoring.json"])
            manifest["files"]["scoring.json"] = {"bytes": size, "sha256": digest}
            members["manifest.json"] = json.dumps(manifest).encode()

        found = verify(repacked(made, tmp_path, told))
        assert (found.wrong, found.scored, found.left) == ((), (), 10)
    assert not (tmp_path / "ran").exists()

"""Atomic writes and locks."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wfvae.errors import ResourceError
from wfvae.files import Content, locked, replacing, require_writable, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("content", "written"),
    [("ä\n", "ä\n".encode()), (b"\0\1", b"\0\1"), (memoryview(b"ab"), b"ab"), ([b"a", "b", b"c"], b"abc")],
)
def test_write_whole_makes_folders_and_replaces(tmp_path: Path, content: Content, written: bytes) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for one, expected in ((content, written), (b"other", b"other")):
        write_whole(path, one)
        assert path.read_bytes() == expected and names(path.parent) == ["file"]


def test_write_whole_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def pieces() -> object:
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match=r"^cannot write .*file: No space left on device; check the disk"):
        write_whole(path, pieces())  # type: ignore[arg-type]
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "write",
    [lambda path: write_whole(path, ""), require_writable, lambda path: locked(path, "busy").__enter__()],
)
def test_folder_that_takes_no_files_is_reported_in_one_line(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    (tmp_path / "file").touch()
    problem = r"^cannot write .*inside: .*; check the disk's space and permissions$"
    with pytest.raises(ResourceError, match=problem):
        write(tmp_path / "file" / "inside")


def test_folder_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with replacing(tmp_path / "store") as temporary:
            (temporary / "inner").mkdir(parents=True)
            (temporary / "inner" / content).touch()
    assert names(tmp_path / "store" / "inner") == ["new"] and names(tmp_path) == ["store"]


def test_folder_stays_when_its_replacement_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, honest = tmp_path / "store", os.replace
    store.mkdir()
    with pytest.raises(KeyboardInterrupt), replacing(store) as temporary:
        temporary.touch()
        raise KeyboardInterrupt

    def fail_for_the_new(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".part"):
            raise PermissionError(13, "Permission denied")
        honest(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_new)
    with pytest.raises(ResourceError, match="Permission denied"), replacing(store) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["store"]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, alive = process.pid, os.getppid()
    (tmp_path / f".file.{dead}.old").mkdir()
    for name in (f".file.{dead}.part", f".file.{alive}.part", f".other.{dead}.part", ".file.x.part"):
        (tmp_path / name).touch()
    write_whole(tmp_path / "file", "")
    assert set(names(tmp_path)) == {f".file.{alive}.part", f".other.{dead}.part", ".file.x.part", "file"}


HOLD = """
import sys
from pathlib import Path
from wfvae.files import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_is_held_across_processes_until_the_process_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ResourceError, match=r"^busy$"), locked(path, "busy"):
            pytest.fail("the lock was taken twice")
        process.kill()
        process.wait()
        with locked(path, "busy", wait=60):
            pass

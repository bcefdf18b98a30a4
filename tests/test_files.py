"""Atomic writes and locks."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.streams import at_once
from wfvae.errors import ResourceError
from wfvae.files import Content, Destination, locked, remove_own, replacing, require_writable, write_whole


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


TOKEN = "0123456789abcdef"


def test_leftovers_of_killed_processes_are_removed_by_the_next_owner(tmp_path: Path) -> None:
    (tmp_path / f".file.{TOKEN}.old").mkdir()
    foreign = {f".other.{TOKEN}.part", ".file.x.part", ".file.1234.part", f".file.{TOKEN}.txt"}
    for name in (f".file.{TOKEN}.part", *foreign):
        (tmp_path / name).touch()
    with Destination(tmp_path / "file") as destination:
        work = destination.create_file()
        (tmp_path / "file").touch()
        with pytest.raises(ResourceError, match="another job is writing"):
            Destination(tmp_path / "file")
        assert work.exists()
    assert set(names(tmp_path)) == {*foreign, "file"}


def test_old_folder_comes_back_after_a_kill_between_the_two_steps(tmp_path: Path) -> None:
    old = tmp_path / f".store.{TOKEN}.old"
    old.mkdir()
    (old / "inner").touch()
    with Destination(tmp_path / "store"):
        assert names(tmp_path / "store") == ["inner"]
    assert names(tmp_path) == ["store"]


def test_destination_has_one_owner_at_a_time(tmp_path: Path) -> None:
    """Each release removes the lock file, which others may just have opened."""
    path, owners, most = tmp_path / "file", [0], [0]

    def own(index: int) -> int:
        for _ in range(40):
            with Destination(path, wait=60):
                owners[0] += 1
                most[0] = max(most[0], owners[0])
                owners[0] -= 1
        return index

    assert at_once(own, 6) == list(range(6))
    assert most == [1] and names(tmp_path) == []


@pytest.mark.parametrize("folder", [False, True])
def test_link_is_followed_and_kept(tmp_path: Path, folder: bool) -> None:
    far, link = tmp_path / "far", tmp_path / "link"
    far.mkdir()
    link.symlink_to(Path("far") / "target")
    for content in ("old", "new"):  # at first the link points to nothing
        with replacing(link) as temporary:
            assert temporary.parent == far.resolve()
            if folder:
                temporary.mkdir()
            (temporary / "inner" if folder else temporary).write_text(content)
    assert link.is_symlink() and names(far) == ["target"] and names(tmp_path) == ["far", "link"]
    assert (link / "inner" if folder else link).read_text() == "new"
    with Destination(link), pytest.raises(ResourceError, match="another job"):
        Destination(far / "target")


def test_work_that_another_program_replaced_is_not_committed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="replaced"), Destination(tmp_path / "file") as destination:
        work = destination.create_file()
        work.unlink()
        work.touch()
        destination.commit(work)
    assert names(tmp_path) == []


def test_foreign_files_are_never_removed(tmp_path: Path) -> None:
    foreign, work = tmp_path / "foreign", tmp_path / "file.partial"
    foreign.mkdir()
    (foreign / "own-1").touch()
    work.symlink_to(foreign)
    with Destination(tmp_path / "file") as destination:
        with pytest.raises(ResourceError, match=r"file\.partial' is a link"):
            destination.part(".partial")
        work.unlink()
        part = destination.part(".partial")
        remove_own(part, lambda name: name.startswith("own"))  # nothing there
        work.mkdir()
        (work / "own-1").touch()
        for make, problem in (
            (lambda: (work / "thesis.txt").touch(), "did not make.*thesis.txt"),
            (lambda: (work / "own-2").symlink_to(foreign / "own-1"), "is a link"),
        ):
            make()
            with pytest.raises(ResourceError, match=problem):
                remove_own(part, lambda name: name.startswith("own"))
            (work / "thesis.txt").unlink(missing_ok=True)
        (work / "own-2").unlink()
        remove_own(part, lambda name: name.startswith("own"))
    assert names(tmp_path) == ["foreign"] and names(foreign) == ["own-1"]


def test_dropped_destination_is_released(tmp_path: Path) -> None:
    destination = Destination(tmp_path / "file")
    destination.create_file()
    del destination
    gc.collect()
    assert names(tmp_path) == []


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

"""Finding the videos of a data set."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from wfvae.errors import DataError, ResourceError
from wfvae.machine import memory_allowance
from wfvae.runtime.dataset.videos import find_videos

pytest.importorskip("fsspec")


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def names(source: Path | str, **options: Any) -> list[str]:
    return [Path(video.name).name for video in find_videos(str(source), **options)]


def test_folder_gives_its_videos_sorted_without_hidden_and_other_files(tmp_path: Path) -> None:
    make(tmp_path, "b.mp4", "a/c.MKV", "a/notes.txt", ".hidden.mp4", ".trash/d.mp4")
    assert names(tmp_path) == ["c.MKV", "b.mp4"]


def test_file_whose_name_is_not_utf8_has_a_problem_and_member_of_a_shard_has_none(tmp_path: Path) -> None:
    name = "a\udcff.mp4"  # the byte 0xFF
    (tmp_path / name).write_bytes(b"")
    [video] = find_videos(str(tmp_path))
    assert video.name == video.url == f"{tmp_path}/a\\xff.mp4"
    assert video.problem == f"the name of '{tmp_path}/a\\xff.mp4' is not UTF-8; rename the file"
    with tarfile.open(tmp_path / "films.tar", "w") as archive:
        archive.add(tmp_path / name, name)
    [video] = find_videos(str(tmp_path / "films.tar"))
    assert video.name == f"{tmp_path}/films.tar/a\\xff.mp4" and video.problem is None


def test_table_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("path,caption\na.mp4,B\u00e4r\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"list.csv' is not UTF-8 \(.*; save it as UTF-8$"):
        find_videos(str(tmp_path / "list.csv"))


def test_glob_gives_what_it_matches(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "b.mkv", "sub/c.mp4")
    assert names(f"{tmp_path}/*.mp4") == ["a.mp4"]
    assert names(f"{tmp_path}/**/*.mp4") == ["a.mp4", "c.mp4"]


def test_url_gives_urls(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/films/a.mp4", b"x")
    assert [video.url for video in find_videos("memory://films")] == ["memory:///films/a.mp4"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_table_gives_paths_relative_to_it_and_its_other_columns(tmp_path: Path, suffix: str) -> None:
    rows = [{"path": "films/a.mp4", "caption": "a cat, a dog"}, {"path": "/b.mp4", "caption": "ein Bär"}]
    table = tmp_path / f"list{suffix}"
    if suffix == ".csv":
        table.write_text('path,caption\nfilms/a.mp4,"a cat, a dog"\n/b.mp4,ein Bär\n', encoding="utf-8")
    elif suffix == ".jsonl":
        table.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    first, second = find_videos(str(table))
    assert (first.url, first.columns) == (str(tmp_path / "films/a.mp4"), {"caption": "a cat, a dog"})
    assert (second.url, second.columns) == ("/b.mp4", {"caption": "ein Bär"})


def test_table_without_the_column_names_the_others(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("file,caption\na.mp4,x\n")
    with pytest.raises(DataError, match=r"no text in column 'path' \(other columns: file, caption\)"):
        find_videos(str(table))
    assert names(table, path_column="file") == ["a.mp4"]


def test_shard_gives_the_bytes_of_each_video_and_its_other_members_as_columns(tmp_path: Path) -> None:
    make(tmp_path, "x/1.mp4", "x/1.txt", "x/2.mp4")
    (tmp_path / "x/1.json").write_text('{"id": 7}')
    with tarfile.open(tmp_path / "shard-0.tar", "w") as archive:
        for name in ("x/1.json", "x/1.mp4", "x/1.txt", "x/2.mp4"):
            archive.add(tmp_path / name, name)
    first, second = find_videos(f"{tmp_path}/shard-*.tar")
    assert first.columns == {"id": 7, "txt": "x/1.txt"} and second.columns == {}
    content = (tmp_path / "shard-0.tar").read_bytes()
    assert first.length is not None
    assert content[first.offset : first.offset + first.length] == b"x/1.mp4"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("nothing", None, "no such file or folder"),
        ("list.jsonl", b"[1]\n", "expected a JSON object, found list"),
        ("list.jsonl", b"{\n", "is unusable"),
        ("list.parquet", b"no table", "as Parquet"),
        ("shard.tar", b"no archive" * 100, "cannot read"),
        ("list.csv", b"path\n", "no videos in"),
        ("list.csv", b"path\na.mp4,b\n", "line 2 has more values than there are columns"),
        ("list.csv", b"path\na\rb.mp4\n", "line 1: new-line character"),
        ("list.csv", b"path\n" + b"x" * 150_000, "field larger than field limit"),
        ("list.csv", b"path\n" + b"x," * 600_000, "a line has more than 1048576 bytes"),
        ("list.csv", b",".join(b"%d" % n for n in range(2000)), "it has 2000 columns"),
        ("list.jsonl", b'{"path": "a.mp4", "x": "' + b"x" * (1 << 20), "a line has more than 1048576 bytes"),
        ("list.jsonl", b'{"path": ' + b"[" * 5000, "is unusable"),
        ("zzz://films", None, "cannot open 'zzz://films'"),
    ],
)
def test_unusable_source_is_one_line(
    tmp_path: Path, name: str, content: bytes | None, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        find_videos(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl", "list.parquet", "shard.tar"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_pipe_in_place_of_a_list_or_shard_is_refused_at_once(
    tmp_path: Path, name: str, in_folder: bool
) -> None:
    os.mkfifo(tmp_path / name)
    problem = "not a regular file" if not in_folder or name.endswith(".tar") else "no videos in"
    with pytest.raises(DataError, match=problem):
        find_videos(str(tmp_path if in_folder else tmp_path / name))


def test_parquet_of_kilobytes_that_holds_gigabytes_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    caption = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 10_000, "int32"), ["x" * 1_000_000])
    table = pyarrow.table({"path": ["a.mp4"] * 10_000, "caption": caption})
    path = tmp_path / "list.parquet"
    parquet.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    with memory_allowance(1 << 28), pytest.raises(ResourceError, match=r"the list of videos of .*; split it"):
        find_videos(str(path))

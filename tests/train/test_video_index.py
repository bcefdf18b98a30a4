"""The index of a folder of videos: kept, used, updated, saved when interrupted."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fixtures.video_folders import SIZE, OpenFolder
from fixtures.videos import write_numbered
from wfvae.errors import DataError
from wfvae.train.data import BadClip, VideoFolder, video_index


def names_of(folder: VideoFolder) -> list[str]:
    return [folder.name(index) for index in range(len(folder))]


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened for the index."""
    names: list[str] = []
    real = video_index.probe

    def watched(path: Path, name: str) -> Any:
        names.append(name)
        return real(path, name)

    monkeypatch.setattr(video_index, "probe", watched)
    return names


def test_index_is_kept_used_and_updated(
    videos: Path, open_folder: OpenFolder, tmp_path: Path, probed: list[str]
) -> None:
    (videos / "deep" / "er").mkdir(parents=True)
    write_numbered(videos / "deep" / "er" / "b.mkv", 9)
    write_numbered(videos / "a.MP4", 8)
    (videos / "c.mp4").write_text("no video")
    seen: list[tuple[int, int]] = []
    first = open_folder(progress=lambda done, total: seen.append((done, total)))
    assert sorted(probed) == ["a.MP4", "c.mp4", "deep/er/b.mkv"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    index = tmp_path / "run" / "index.json"
    listed = [(file["path"], file.get("frames")) for file in json.loads(index.read_text())["files"]]
    assert listed == [("a.MP4", 8), ("c.mp4", None), ("deep/er/b.mkv", 9)]
    assert list(index.parent.iterdir()) == [index]
    assert sorted(path.name for path in videos.iterdir()) == ["a.MP4", "c.mp4", "deep"]

    probed.clear()
    again = open_folder()
    assert probed == ["c.mp4"]  # a bad file may be good today
    assert names_of(again) == names_of(first) == ["a.MP4", "deep/er/b.mkv"]
    clips = [folder.clip(1, np.random.default_rng(0)) for folder in (first, again)]
    assert np.array_equal(*clips)
    assert str(again.unusable[0]) == str(first.unusable[0])

    probed.clear()
    write_numbered(videos / "c.mp4", 7)
    (videos / "a.MP4").unlink()
    write_numbered(videos / "d.mp4", 6)
    assert names_of(open_folder()) == ["c.mp4", "d.mp4", "deep/er/b.mkv"]
    assert sorted(probed) == ["c.mp4", "d.mp4"]

    probed.clear()
    index.write_text('{"format": "wfvae video index", "ver')
    open_folder()
    assert sorted(probed) == ["c.mp4", "d.mp4", "deep/er/b.mkv"]


def test_file_that_was_bad_for_a_moment_is_used_at_the_next_start(
    videos: Path, open_folder: OpenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: list[str]
) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_numbered(videos / name, 8)
    watched = video_index.probe

    def fails(path: Path, name: str) -> Any:
        facts = watched(path, name)
        if name == "b.mp4":
            raise BadClip(name, "Input/output error")
        return facts

    with monkeypatch.context() as patch:
        patch.setattr(video_index, "probe", fails)
        [bad] = open_folder().unusable
        assert str(bad) == "'b.mp4': Input/output error"
        index = tmp_path / "run" / "index.json"
        written = index.stat().st_mtime_ns
        open_folder()
        assert sorted(probed) == ["a.mp4", "b.mp4", "b.mp4"]
        assert index.stat().st_mtime_ns == written, "found as before: there is nothing to write"
    # Other processes of a run use what the first one found, or they would train on other files.
    counts = [len(open_folder(retry_bad=retry)) for retry in (False, True, False)]
    assert counts == [1, 2, 2]


def test_interrupted_scan_is_saved_and_continues_where_it_was(
    videos: Path, open_folder: OpenFolder, monkeypatch: pytest.MonkeyPatch, probed: list[str]
) -> None:
    names = [f"{number}.mp4" for number in range(8)]
    for name in names:
        write_numbered(videos / name, 5)
    real_save = video_index._save
    seconds, saved = [0.0], list[int]()

    def watched_save(index_path: Path, root: Path, files: Any) -> None:
        saved.append(len(files))
        seconds[0] += 100.0  # writing does not count
        real_save(index_path, root, files)

    def ten_seconds(done: int, total: int) -> None:
        seconds[0] += 10.0
        if done == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(video_index, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr(video_index, "_save", watched_save)
    with pytest.raises(KeyboardInterrupt):
        open_folder(progress=ten_seconds)
    assert saved == [4, 6]
    probed.clear()
    assert names_of(open_folder()) == names
    assert len(probed) == 2
    assert saved == [4, 6, 8]


def test_index_in_the_data_folder_is_refused(videos: Path, tmp_path: Path) -> None:
    write_numbered(videos / "a.mp4", 8)
    (tmp_path / "link").symlink_to(videos)
    for place in (videos / "index.json", videos / "x" / "index.json", tmp_path / "link" / "index.json"):
        with pytest.raises(DataError, match="would lie in the data folder"):
            VideoFolder(videos, 1, SIZE, index_path=place)
    assert [path.name for path in videos.iterdir()] == ["a.mp4"]


def test_cycle_of_links_ends(videos: Path, open_folder: OpenFolder) -> None:
    write_numbered(videos / "a.mp4", 8)
    (videos / "below").mkdir()
    (videos / "below" / "up").symlink_to(videos)
    assert names_of(open_folder()) == ["a.mp4"]

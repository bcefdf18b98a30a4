"""Which frames are scored at what size, and which videos belong together."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from fixtures.program import clip, save
from wfvae.errors import InputError
from wfvae.evaluation.protocol import Protocol, open_prepared, square
from wfvae.evaluation.sources import reconstruct
from wfvae.evaluation.video_files import find_videos, match_videos
from wfvae.runtime import Bundle


@given(st.integers(11, 90), st.integers(11, 90), st.integers(8, 64))
def test_square_is_square_and_centred(height: int, width: int, side: int) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, width)[None, :, None], (height, width, 3)).round()
    found = square(np.ascontiguousarray(ramp.astype(np.uint8)), side)
    assert found.shape == (side, side, 3)
    # A ramp keeps its middle value only if the crop is centred; a pixel of the small side is up to
    # `step` levels wide.
    step = 255 / (width - 1) * max(1.0, min(height, width) / side)
    assert abs(float(found[..., 0].mean()) - 127.5) <= step + 1


def test_windows_are_the_first_or_the_middle_frames(tmp_path: Path) -> None:
    frames = clip(12, 16, 16)
    path = save(tmp_path / "v.mkv", frames, codec="ffv1", pixel_format="bgr0")

    def window(protocol: Protocol) -> np.ndarray:
        with open_prepared(path, protocol) as prepared:
            return np.stack(list(prepared.frames))

    assert np.array_equal(window(Protocol(5, None)), frames[:5])
    assert np.array_equal(window(Protocol(5, None, "centre")), frames[3:8])
    assert np.array_equal(window(Protocol(None, None)), frames)
    for kind in ("first", "centre"):
        with pytest.raises(InputError, match="has 12 frames, and 13 are scored"):
            window(Protocol(13, None, kind))  # type: ignore[arg-type]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_videos_are_matched_by_their_path_without_suffix(tmp_path: Path) -> None:
    names = ("a/2.mp4", "a/10.mp4", "b.x.mov", "images/1.png", "notes.txt", ".c.mp4")
    real = touch(tmp_path / "real", *names)
    other = touch(tmp_path / "other", "a/2.mkv", "a/10.MKV", "b.x.mp4", "images.mp4")
    assert list(find_videos(real)) == ["a/2", "a/10", "b.x", "images"]
    pairs = match_videos(real, other)
    expected = {"a/2": "2.mkv", "a/10": "10.MKV", "b.x": "b.x.mp4", "images": "images.mp4"}
    assert {name: result.name for name, (_, result) in pairs.items()} == expected
    touch(other, "more.mp4")
    with pytest.raises(InputError, match="first 'more'"):
        match_videos(real, other)
    assert match_videos(real, other, only_matched=True) == pairs
    touch(real, "b.x.mkv")
    with pytest.raises(InputError, match="same name"):
        match_videos(real, other)
    assert match_videos(real / "a/2.mp4", other / "b.x.mp4").keys() == {"2"}, "two files are a pair"


def test_reconstruction_of_a_long_video_holds_few_frames(opened: Callable[..., Bundle]) -> None:
    frame, read, given, most = clip(1, 16, 16)[0], 0, 0, 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        for _ in range(90):
            read += 1
            yield frame

    for before, after in reconstruct(opened("4x8x8-trilinear"), endless(), 16, 16, 1):
        assert before.shape == after.shape
        given += len(before)
        most = max(most, read - given)
    assert (read, given) == (90, 90)
    assert most <= 8

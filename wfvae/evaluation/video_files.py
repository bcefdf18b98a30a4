"""Finding videos, and pairing each with its reconstruction by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wfvae.errors import InputError
from wfvae.runtime.media.image_folder import SUFFIXES as IMAGE_SUFFIXES
from wfvae.runtime.media.image_folder import natural_key
from wfvae.video.suffixes import VIDEO_SUFFIXES


@dataclass(frozen=True)
class Pair:
    """A video and its reconstruction."""

    name: str
    """The path below the folder, without suffix."""
    real: Path
    reconstruction: Path


def find_videos(root: Path) -> dict[str, Path]:
    """Videos by name, in natural order of names: the file itself, or all video files and folders of
    images below a folder.

    A name is the path below `root` without the file's suffix. A folder that holds images is one
    video.

    Raises:
        InputError: there are none, or two of one name.
    """
    if not root.exists():
        raise InputError(f"{root} does not exist; expected a video or a folder of videos")
    if is_one_video(root):
        return {root.stem: root}
    found: dict[str, Path] = {}
    for path in _videos_below(root):
        relative = path.relative_to(root)
        name = str(relative if path.is_dir() else relative.with_suffix(""))
        if name in found:
            raise InputError(
                f"'{found[name]}' and '{path}' have the same name without suffix, so it can't be told which"
                " one to compare; remove one"
            )
        found[name] = path
    if not found:
        raise InputError(
            f"no videos in '{root}'; expected files ending in {', '.join(sorted(VIDEO_SUFFIXES))}, or folders"
            " of images"
        )
    return {name: found[name] for name in sorted(found, key=natural_key)}


def match_videos(real: Path, reconstructions: Path, *, only_matched: bool = False) -> list[Pair]:
    """Pairs the videos of two folders by name; two single videos are a pair whatever their names.

    Args:
        only_matched: leave out what has no partner instead of refusing.

    Raises:
        InputError: a video without a partner, or no pair at all.
    """
    originals, results = find_videos(real), find_videos(reconstructions)
    if is_one_video(real) and is_one_video(reconstructions):
        return [Pair(real.stem, real, reconstructions)]
    pairs = [Pair(name, path, results[name]) for name, path in originals.items() if name in results]
    if not pairs:
        raise InputError(
            f"no video of '{real}' has the name of one in '{reconstructions}'; "
            "names without suffix must agree, as 'a/x.mp4' and 'a/x.mkv' do"
        )
    lonely = (
        [name for name in originals if name not in results],
        [name for name in results if name not in originals],
    )
    if any(lonely) and not only_matched:
        first, folder, other = (
            (lonely[0][0], real, reconstructions) if lonely[0] else (lonely[1][0], reconstructions, real)
        )
        raise InputError(
            f"{sum(map(len, lonely))} videos have no partner, first '{first}' of '{folder}', which '{other}'"
            " lacks; add what is missing, or score the others with --matched"
        )
    return pairs


def is_one_video(path: Path) -> bool:
    """Whether a path is a single video: a file, or a folder that holds images itself."""
    return path.is_file() or (path.is_dir() and any(map(_is_image, _entries(path))))


def _videos_below(folder: Path) -> Iterator[Path]:
    for entry in _entries(folder):
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if entry.is_dir():
            if is_one_video(path):
                yield path
            else:
                yield from _videos_below(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            yield path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return (
        not entry.name.startswith(".")
        and entry.is_file()
        and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
    )

"""Finds videos, and pairs each with its reconstruction by name."""

import os
from collections.abc import Iterator
from pathlib import Path

from wfvae.errors import InputError
from wfvae.runtime.media.image_folder import SUFFIXES as IMAGE_SUFFIXES
from wfvae.runtime.media.image_folder import natural_key
from wfvae.video import VIDEO_SUFFIXES


def find_videos(root: Path) -> dict[str, Path]:
    """Returns videos by name, in natural order: `root` itself, or all below this folder.

    A name is the path below `root` without the file's suffix. A folder that holds images is one
    video. Raises `InputError` if there are none, or two of one name.
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
            problem = f"'{found[name]}' and '{path}' have the same name without suffix"
            raise InputError(f"{problem}, so either could be meant; remove one")
        found[name] = path
    if not found:
        suffixes = ", ".join(sorted(VIDEO_SUFFIXES))
        raise InputError(f"no videos in '{root}'; expected files ending in {suffixes}, or folders of images")
    return {name: found[name] for name in sorted(found, key=natural_key)}


def match_videos(
    real: Path, reconstructions: Path, *, only_matched: bool = False
) -> dict[str, tuple[Path, Path]]:
    """Pairs the videos of two folders by name; two single videos are a pair whatever their names.

    Raises `InputError` without any pair, and for a video without a partner unless `only_matched`.
    """
    originals, results = find_videos(real), find_videos(reconstructions)
    if is_one_video(real) and is_one_video(reconstructions):
        return {real.stem: (real, reconstructions)}
    pairs = {name: (path, results[name]) for name, path in originals.items() if name in results}
    if not pairs:
        problem = f"no video of '{real}' has the name of one in '{reconstructions}'"
        raise InputError(f"{problem}; names without suffix must agree, as 'a/x.mp4' and 'a/x.mkv' do")
    lonely = [(name, real, reconstructions) for name in originals if name not in results]
    lonely += [(name, reconstructions, real) for name in results if name not in originals]
    if lonely and not only_matched:
        name, folder, other = lonely[0]
        problem = f"{len(lonely)} videos have no partner, first '{name}' of '{folder}', which '{other}' lacks"
        raise InputError(f"{problem}; add what is missing, or score the others with --matched")
    return pairs


def is_one_video(path: Path) -> bool:
    """Returns whether a path is a single video: a file, or a folder that holds images itself."""
    return path.is_file() or (path.is_dir() and any(map(_is_image, _entries(path))))


def _videos_below(folder: Path) -> Iterator[Path]:
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.is_dir():
            if is_one_video(path):
                yield path
            else:
                yield from _videos_below(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            yield path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder that are not hidden."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES

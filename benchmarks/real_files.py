"""Does `wfvae encode-dataset` account for every file of a folder as people have them?

    python benchmarks/real_files.py clips/*.mp4 --json benchmarks/results/real-files.json
    python benchmarks/real_files.py --others odd/*.mkv --windows 1 --engines local

Makes a folder from clips (a generated one if none are given): 20 kinds of files of each window of
each clip (codecs, containers, depths, rates, rotation, damage), the clips and other files as they
are, and files that are no videos. Each file is encoded by `encode_video` alone, then the folder as
a data set by each engine with two workers. A file must be in the shards with equal bits, or in
failures.jsonl where `encode_video` fails, too. The exit code is 1 if one is not.
"""

import io
import json
import os
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from harness.engines import exported, open_on
from harness.mixed_folder import make_mixed_folder
from harness.record import CommandLine, finish, positive

from wfvae import WFVAE
from wfvae.errors import WFVAEError
from wfvae.runtime import encode_video
from wfvae.runtime.dataset.job import encode_dataset
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.video.synthetic.clips import ProceduralClip

WORKERS = 2
FAILED = "failed"
Outcomes = dict[str, str]
"""By path: the hash of the latents, or `FAILED`."""


def name_of(path: Path) -> str:
    """Returns a path as shards and failures.jsonl name it, which are UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def hash_latents(latents: Any) -> str:
    """Returns the hash of values and shape."""
    return sha256(repr((latents.dtype.str, latents.shape)).encode() + latents.tobytes()).hexdigest()


def encode_each(bundle: Path, paths: Iterable[Path], folder: Path, threads: int) -> Outcomes:
    """Encodes each file alone."""
    found = {}
    with open_on("onnxruntime", bundle, threads) as opened:
        for path in paths:
            try:
                encode_video(opened, path, folder / "alone.npy")
                found[name_of(path)] = hash_latents(np.load(folder / "alone.npy"))
            except WFVAEError:
                found[name_of(path)] = FAILED
    return found


def read_dataset(out: Path) -> list[tuple[str, str]]:
    """Returns (source, outcome) of all samples and failures, read as any program reads them."""
    found = []
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        for name, content in members.items():
            if name.endswith(".json"):
                latents = np.load(io.BytesIO(members[name.removesuffix("json") + "npy"]))
                found.append((json.loads(content)["source"], hash_latents(latents)))
    for line in (out / "failures.jsonl").read_text(encoding="utf-8").splitlines():
        found.append((json.loads(line)["source"], FAILED))
    return found


def generated_clip(path: Path, frames: int) -> Path:
    """Writes a procedural clip."""
    with open_video_writer(path, OutputVideo(96, 64, Fraction(24))) as writer:
        writer.write(ProceduralClip(0, 64, 96, frames).frames(0, frames))
    return path


def compare(expected: Outcomes, found: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Returns the number of files in the result, and those with another outcome than expected."""
    given = dict(found)
    times = Counter(source for source, _ in found)
    differing = sorted(
        f"{source}: {times[source]} times, {given.get(source)}, alone {expected.get(source)}"
        for source in {*expected, *given}
        if times[source] != 1 or given[source] != expected.get(source)
    )
    return {"files": len(times), "differing": differing}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "real-files.json", frames=17)
    parser.add_argument("clips", type=Path, nargs="*", help="videos to make files from")
    parser.add_argument("--others", type=Path, nargs="+", default=[], help="files to add as they are")
    parser.add_argument("--windows", type=positive, default=3, help="of each clip")
    parser.add_argument("--engines", nargs="+", default=["local", "ray"], choices=["local", "ray"])
    options = parser.parse_args(arguments)
    with exported(WFVAE.from_pretrained("tiny")) as (bundle, _), TemporaryDirectory() as name:
        folder = Path(name)
        options.clips = options.clips or [generated_clip(folder / "generated.mp4", 2 * options.frames)]
        made = make_mixed_folder(
            folder / "videos", options.clips, options.others, options.frames, options.windows
        )
        kinds = {name_of(path): kind for path, kind in made.items()}
        alone = encode_each(bundle, made, folder, options.threads)
        engines = {}
        for engine in options.engines:
            began = time.perf_counter()
            encode_dataset(bundle, str(folder / "videos"), folder / engine, engine=engine, workers=WORKERS)
            compared = compare(alone, read_dataset(folder / engine))
            engines[engine] = {**compared, "seconds": time.perf_counter() - began}
    rows = []
    for kind in dict.fromkeys(kinds.values()):
        of_kind = [alone[path] for path in kinds if kinds[path] == kind]
        rows.append({"kind": kind, "files": len(of_kind), "failed": of_kind.count(FAILED)})
    job = {**options.job, "clips": len(options.clips), "windows": options.windows}
    finish(options, "real-files", job=job, rows=rows, engines=engines)
    return int(any(found["differing"] for found in engines.values()))


if __name__ == "__main__":
    sys.exit(main())

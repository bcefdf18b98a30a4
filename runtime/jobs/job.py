"""What encode, decode and reconstruct share: measured streams, snapshots beside the output,
refusals.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from wfvae.errors import MediaError, StateError
from wfvae.runtime.jobs.report import TimedSession
from wfvae.runtime.media.video_info import VideoInfo
from wfvae.runtime.media.video_writer import NUMBERED, PIPE
from wfvae.runtime.snapshot import Snapshot
from wfvae.runtime.stream import EncoderStream

if TYPE_CHECKING:
    from wfvae.runtime.bundle import Bundle

DEPTH = 2
"""Pieces that reading may be ahead of inference, and inference of writing."""
CHECKPOINT_SECONDS = 30.0
"""Time between two snapshots of a stream."""
FROM_PIPE = "pipe"
"""In place of a fingerprint."""
_FINGERPRINT_BYTES = 1 << 20


def timed_encoder(bundle: Bundle, info: VideoInfo, chunk: int) -> EncoderStream:
    stream = bundle.encoder(height=info.height, width=info.width, chunk=chunk)
    stream.session = TimedSession(stream.session)
    return stream


def fingerprint(source: str | Path) -> str:
    """Tells one source from another well enough to refuse to resume with the wrong one."""
    if str(source) == PIPE:
        return FROM_PIPE
    path = Path(source)
    digest = hashlib.sha256()
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            digest.update(f"{entry.name}:{entry.stat().st_size};".encode())
    else:
        with path.open("rb") as file:
            digest.update(file.read(_FINGERPRINT_BYTES))
        digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()


def load_snapshot(record: Path, note: str, resume: bool, source: str | Path) -> Snapshot | None:
    if not resume or not record.exists():
        return None
    if note == FROM_PIPE:
        raise MediaError(
            "a job that reads a pipe cannot be resumed, since what was read is gone; give a file"
        )
    try:
        snapshot = Snapshot.read(record)
    except StateError as error:
        raise StateError(f"{record}: {error}, without --resume") from error
    if snapshot.note != note:
        raise StateError(
            f"the interrupted job was about another source or other settings than {source}; run it without"
            " --resume to begin anew"
        )
    return snapshot


def forget(record: Path) -> None:
    """Removes a snapshot, and one that a killed run was writing."""
    for path in (record, record.with_name(record.name + ".tmp")):
        path.unlink(missing_ok=True)


def check_distinct(source: str | Path | None, out: str | Path) -> None:
    """Raises `MediaError` where the output would replace what it is made from."""
    if source is None or PIPE in (str(source), str(out)):
        return
    target = Path(out).parent if NUMBERED.search(Path(out).name) else Path(out)
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise MediaError(
            f"'{out}' is the input itself ('{source}'), which would be lost; choose another name for the"
            " output"
        )

"""The account of files that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from wfvae.errors import DataError
from wfvae.train.data.clip_source import BadClip, ShortClip


class BadClipLedger:
    """Reports each bad file once, counts them, and stops the run when there are too many.

    Args:
        limit: different files that may be bad; None for any number.
        report: is given one line for each bad file.

    Attributes:
        reasons: the first reason of every bad file, by name.
    """

    def __init__(self, limit: int | None = 100, report: Callable[[str], None] | None = None) -> None:
        self.limit = limit
        self.reasons: dict[str, str] = {}
        self._short = 0
        self._report = report

    def __len__(self) -> int:
        return len(self.reasons)

    def note(self, bad: Iterable[BadClip], report: bool = True) -> None:
        """Counts bad files, and reports them if asked to; known ones change nothing.

        Raises:
            DataError: more than `limit` different files are bad. All of `bad` have been reported.
        """
        last = None
        for clip in bad:
            if clip.name in self.reasons:
                continue
            last = clip
            self.reasons[clip.name] = clip.reason
            self._short += isinstance(clip, ShortClip)
            if report and self._report is not None:
                self._report(f"skipped {clip}")
        if last is not None and self.limit is not None and len(self) > self.limit:
            short = (
                f"{self._short} of them are whole, but too short for data.frames and data.stride; "
                if self._short
                else ""
            )
            raise DataError(
                f"{len(self)} files cannot be used, more than the limit of {self.limit}; the last is {last};"
                f" {short}repair or remove them, or raise data.bad_files"
            )

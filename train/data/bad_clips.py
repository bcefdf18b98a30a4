"""The account of files that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from wfvae.errors import DataError
from wfvae.train.data.clip_source import BadClip, ShortClip

__all__ = ["DEFAULT_LIMIT", "BadClipLedger"]

DEFAULT_LIMIT = 100


class BadClipLedger:
    """Reports each bad file once, counts them, and stops the run when they are too many.

    Attributes:
        limit: how many different files may be bad; None for any number.
        reasons: the first reason of every bad file, by name.
    """

    def __init__(
        self, limit: int | None = DEFAULT_LIMIT, report: Callable[[str], None] | None = None
    ) -> None:
        """Start an empty account.

        Args:
            limit: different files that may be bad, >= 0; None for any number.
            report: is given one line for each bad file; None for silence.

        Raises:
            DataError: limit is negative.
        """
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise DataError(
                f"the limit on bad files is {limit!r}; expected an integer of at least 0, or None"
            )
        self.limit = limit
        self.reasons: dict[str, str] = {}
        self._short = 0
        self._report = report

    def __len__(self) -> int:
        """Different bad files so far."""
        return len(self.reasons)

    def note(self, bad: Iterable[BadClip], tell: bool = True) -> None:
        """Take in what was met; files known already change nothing.

        Args:
            bad: files that cannot be used.
            tell: whether new ones are reported, or only counted.

        Raises:
            DataError: more than `limit` different files are bad. All of `bad` has been counted, and
                reported, then.
        """
        last = None
        for clip in bad:
            if clip.name in self.reasons:
                continue
            self.reasons[clip.name] = clip.reason
            self._short += isinstance(clip, ShortClip)
            last = clip
            if tell and self._report is not None:
                self._report(f"skipped {clip}")
        if last is not None and self.limit is not None and len(self.reasons) > self.limit:
            short = (
                f"{self._short} of them are whole, but too short for data.frames and data.stride; "
                if self._short
                else ""
            )
            raise DataError(
                f"{len(self.reasons)} files cannot be used, more than the limit of {self.limit}; the last is"
                f" {last}; {short}repair or remove them, or raise data.bad_files"
            )

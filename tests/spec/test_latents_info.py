"""Metadata of latents: JSON is read back as written, and values out of range are refused."""

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fixtures.latents_info import INFO
from wfvae.errors import LatentsError
from wfvae.spec.latents import LatentsInfo


@given(
    frames=st.none() | st.integers(1, 10**9),
    fps=st.fractions(min_value=Fraction(1, 100), max_value=1000, max_denominator=10**6),
    ratio=st.sampled_from([4, 8]),
    scale=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4),
    tick=st.none() | st.just(Fraction(1, 90000)),
)
def test_metadata_survive_json(
    frames: int | None, fps: Fraction, ratio: Any, scale: list[float], tick: Fraction | None
) -> None:
    info = replace(INFO, frames=frames, fps=fps, temporal_ratio=ratio, scale=tuple(scale), time_base=tick)
    assert LatentsInfo.from_json(json.loads(json.dumps(info.to_json())), "x") == info


WRONG = [
    ("frames", 0, "frames is 0"),
    ("temporal_ratio", 3, "temporal_ratio is 3"),
    ("padded_width", 40, "padded to 32x40 cannot be"),
    ("fps", Fraction(0), "0 fps cannot be"),
    ("version", "v2", "version is 'v2'; expected one of 'wfvae-latents/1'"),
]


@pytest.mark.parametrize(("key", "value", "problem"), WRONG)
def test_metadata_out_of_range_are_refused(key: str, value: Any, problem: str) -> None:
    with pytest.raises(LatentsError, match=problem):
        replace(INFO, **{key: value})

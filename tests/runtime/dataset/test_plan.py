"""Cutting a data set into parts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfvae.errors import DataError, InputError
from wfvae.runtime.dataset.options import ClipOptions
from wfvae.runtime.dataset.plan import (
    Part,
    PartSize,
    Probe,
    Unit,
    cut_parts,
    encode_parts,
    estimated_work,
    units_of,
)
from wfvae.runtime.dataset.settings import read_records
from wfvae.runtime.dataset.storage import ShardFolder
from wfvae.runtime.dataset.videos import Video
from wfvae.spec.bounded import parse_object
from wfvae.spec.records import read_as

VIDEO = Video("a.mp4", "a.mp4")
sizes = st.builds(PartSize, work=st.integers(1, 5000), samples=st.integers(1, 20))


@given(
    frames=st.integers(1, 400),
    window=st.integers(1, 40),
    stride=st.integers(1, 3),
    windows=st.sampled_from(["all", "first", 1, 3, 1000]),
    size=sizes,
)
def test_units_of_a_video_cover_each_window_once(
    frames: int, window: int, stride: int, windows: str | int, size: PartSize
) -> None:
    options = ClipOptions(frames=window, stride=stride, windows=windows)  # type: ignore[arg-type]
    probe = Probe(64, 64, "25", frames)
    units = list(units_of(0, VIDEO, probe, options, 4, size))
    limit = options.window_limit
    expected = 0
    for unit in units:
        assert unit.first_window == expected
        expected += unit.samples if unit.windows is None else unit.windows
    # The last unit takes what is left, however many windows the video really has.
    assert units[-1].windows is None if limit is None else expected == limit
    assert sum(unit.work for unit in units) == estimated_work(probe, options, 4)


@given(works=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 900)), max_size=30), size=sizes)
def test_parts_keep_the_order_and_hold_no_more_than_allowed(
    works: list[tuple[int, int]], size: PartSize
) -> None:
    units = [Unit(k, VIDEO, 8, 8, samples=samples, work=work) for k, (samples, work) in enumerate(works)]
    parts = list(cut_parts(units, size))
    assert [unit for part in parts for unit in part.units] == units
    assert [part.number for part in parts] == list(range(len(parts)))
    for part in parts:
        fits = size.holds(sum(unit.samples for unit in part.units), part.work)
        assert fits or len(part.units) == 1
    lines = encode_parts(parts).splitlines()
    assert [read_as(Part, parse_object(line, DataError), DataError) for line in lines] == parts


def test_whole_video_is_one_unit_whose_frames_are_those_after_resampling() -> None:
    options = ClipOptions(fps="12.5", stride=2)
    [unit] = units_of(3, VIDEO, Probe(64, 32, "25", 100), options, 4, PartSize(work=1))
    assert (unit.index, unit.height, unit.width, unit.frames) == (3, 64, 32, 25)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"number": 0, "units": ' + "[" * 100_000, "nests more than 32 levels"),
        ('{"number": 1' + "0" * 400 + "}", "an integer of 401 characters"),
        ('{"number": -1, "units": []}', "number is -1"),
        ("\xff", "can't decode byte"),
        ('{"number": 0}', "units is missing"),
        ("[]", "expected a JSON object"),
    ],
)
def test_forged_plan_is_refused_in_one_line(line: str, problem: str, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "plan.jsonl").write_bytes(b'{"number": 0, "units": []}\n' + line.encode("latin-1"))
    with pytest.raises(DataError, match=problem) as caught:
        read_records(ShardFolder(str(tmp_path)), "plan.jsonl", Part)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_rate_that_would_take_for_ever_is_refused() -> None:
    with pytest.raises(InputError, match="expected a rate such as 24"):
        ClipOptions(fps="1e1000000000")

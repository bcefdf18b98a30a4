"""Verifies a bundle: plan invariance, stream = direct, backend = model, backend = ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError
from wfvae.export.parity import plans
from wfvae.export.parity.difference import Array, measure, not_compared
from wfvae.export.parity.plans import Job, require_checkpoint, run_direct, run_model
from wfvae.export.parity.rules import Rule, model_rule, plan_rule, reference_rule, stream_rule
from wfvae.export.parity.search import run_search, search_backend, search_direct, search_plans
from wfvae.export.parity.verification import Check, NotAvailable, Verification, array_sha256
from wfvae.runtime.bundle import Bundle, open_bundle
from wfvae.runtime.pixels import to_uint8_frames
from wfvae.spec.exactness import is_reference
from wfvae.spec.frames import DEFAULT_CHUNK, even_chunks
from wfvae.spec.stream import Direction

if TYPE_CHECKING:
    from wfvae.model.vae import WFVAE

PLAN_INVARIANCE = "plan invariance"
STREAM_DIRECT = "stream = direct"
STREAM_ONE_CALL = "stream = one call"
BACKEND_MODEL = "backend = model"
BACKEND_ONNXRUNTIME = "backend = onnxruntime"

Progress = Callable[[str, int, int], None]
DIRECTIONS: tuple[Direction, Direction] = ("encoder", "decoder")
_WHOLE = "video"
_COMPARED = f"steps of {DEFAULT_CHUNK}"
_NO_DIRECT = (
    "the bundle has no direct graph, so one step of everything stands for it; export without --no-direct"
)
_NO_BFLOAT16 = (
    "ONNX Runtime's CPU provider has no bfloat16 convolution; compare with the model (--against), or another"
    " precision's bundle"
)


def verify(
    bundle: Bundle,
    frames: npt.NDArray[np.uint8],
    *,
    against: WFVAE | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Verification:
    """Checks a bundle on a video, in both directions.

    The decoder gets the latents of the encoder's direct inference.

    Args:
        bundle: opened on the backend in question.
        frames: (T, H, W, 3) uint8, T >= 1. All of it is held in memory several times, and runs as
            one step.
        against: the model of the checkpoint that the bundle was exported from; it is not changed.
        progress: called with a stage's name and how many of how many stages are done.

    Raises:
        InputError: `frames` is not such a video.
        CheckpointError: `against` is another checkpoint.

    Example:
        >>> from wfvae import WFVAE
        >>> from wfvae.export.bundle import ExportOptions, export_bundle
        >>> _ = export_bundle(WFVAE.from_pretrained("tiny"), "bundle")
        >>> with open_bundle("bundle") as bundle:
        ...     verify(bundle, np.zeros((5, 16, 16, 3), np.uint8)).passed
        True
    """
    if not isinstance(frames, np.ndarray):
        raise InputError(f"frames are {type(frames).__name__}; expected a NumPy array (T, H, W, 3) of uint8")
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or frames.size == 0:
        raise InputError(
            f"frames are {frames.dtype} of shape {frames.shape}; expected uint8 of shape (T, H, W, 3) with at"
            " least 1 frame"
        )
    if against is not None:
        require_checkpoint(against, bundle.manifest.checkpoint_sha256)
    return _Verifier(bundle, frames, against, progress).run()


@dataclass
class _Verifier:
    bundle: Bundle
    frames: npt.NDArray[np.uint8]
    against: WFVAE | None
    progress: Progress
    checks: list[Check] = field(default_factory=list)
    done: int = 0
    searched: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.described = self.bundle.backend.describe()
        self.precision = self.bundle.manifest.precision
        volumes = self.bundle.has_volumes
        plan = plan_rule(self.described, self.precision, volumes=volumes)
        stream = stream_rule(self.described, self.precision, volumes=volumes)
        self.rules = {PLAN_INVARIANCE: plan, STREAM_ONE_CALL: plan, STREAM_DIRECT: stream}
        self.reference = self._open_reference()
        self.clips = self._make_clips()
        # Per direction: whole clip direct, seven plans, one stream per further clip, two precisions
        # of the model, the other backend.
        further = len(self.clips) + (2 if self.against is not None else 0) + (self.reference is not None)
        self.total = 2 * (7 + further)

    def run(self) -> Verification:
        hashes: dict[str, tuple[str, ...]] = {}
        latents: dict[str, Array] = {}
        for direction in DIRECTIONS:
            for label, clip in self.clips.items():
                job = self._job(direction, clip, latents.get(label))
                if direction == "decoder" and not (label in latents and np.isfinite(latents[label]).all()):
                    problem = "nothing was compared: the encoder's latents are not finite"
                    self.checks.append(self._compare(self._statement(direction), job, label, problem))
                    continue
                result = self._check_whole(job) if label == _WHOLE else self._check_further(job, label)
                if direction == "encoder":
                    latents[label] = result
                if label == _WHOLE:
                    hashes |= _hashes(direction, result)
        count, height, width, _ = self.frames.shape
        digest = array_sha256(self.frames)
        return Verification(
            checks=tuple(self.checks),
            not_available=tuple(self._not_available()),
            manifest=self.bundle.manifest,
            # Described again: only after a run it is known what was loaded, and what fell back.
            backend=self.bundle.backend.describe(),
            video={"frames": count, "height": height, "width": width, "sha256": digest},
            frame_sha256=hashes,
        )

    def _open_reference(self) -> Bundle | None:
        """Opens the bundle on ONNX Runtime's CPU provider.

        None if that is what is verified, or if it cannot run this precision.
        """
        if is_reference(self.described) or self.precision == "bf16":
            return None
        threads = self.described.get("threads", "all")
        count = int(threads) if threads.isdecimal() else None
        return open_bundle(self.bundle.path, "onnxruntime", provider="cpu", threads=count, verify=False)

    def _make_clips(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Returns the video, one of a length that is not 1 + r n, and an image."""
        count = len(self.frames)
        clips = {_WHOLE: self.frames}
        if count > 2 and (count - 1) % self.bundle.ratio == 0:
            clips[f"first {count - 1} frames"] = self.frames[:-1]
        if count > 1:
            clips["image"] = self.frames[:1]
        return clips

    def _not_available(self) -> Iterator[NotAvailable]:
        for direction, verb in zip(DIRECTIONS, ("encode", "decode"), strict=True):
            if not self._has_direct(direction):
                yield NotAvailable("direct graph", verb, _NO_DIRECT)
            if self.reference is None and not is_reference(self.described):
                yield NotAvailable(BACKEND_ONNXRUNTIME, verb, _NO_BFLOAT16)

    def _job(self, direction: Direction, clip: Array, latents: Array | None) -> Job:
        count, height, width = clip.shape[:3]
        if direction == "encoder" or latents is None:
            return Job(self.bundle, direction, clip, count, height, width)
        # Of moments, the decoder takes the means.
        channels = int(self.bundle.manifest.graphs["decoder"].inputs[0].shape[2])
        return Job(self.bundle, direction, np.ascontiguousarray(latents[:, :channels]), count, height, width)

    def _check_further(self, job: Job, label: str) -> Array:
        """Checks the stream of a further clip. Returns its direct result."""
        self._advance(f"{job.verb} {label}: direct")
        direct = run_direct(job) if self._has_direct(job.direction) else plans.run_chunks(job, job.latents)
        plan, steps = f"{label}, steps of 1", (1,) * job.latents
        self._check_stream(self._statement(job.direction), job, plan, plans.run_chunks(job, 1), direct, steps)
        return direct

    def _check_whole(self, job: Job) -> Array:
        """Runs all checks of the video in one direction. Returns its direct result."""
        statement = self._statement(job.direction)
        self._advance(f"{job.verb} {_WHOLE}: direct")
        reference = direct = plans.run_chunks(job, job.latents)
        if statement == STREAM_DIRECT:
            direct = run_direct(job)
            self._check_stream(statement, job, "one step", reference, direct, (job.latents,))
        for plan, streamed, steps in self._plans(job):
            self._check_stream(PLAN_INVARIANCE, job, plan, streamed, reference, steps)
            if plan == "steps of 1":
                self._check_stream(statement, job, plan, streamed, direct, steps)
            if plan == _COMPARED:
                self._check_reference(job, streamed)
        self._check_rows(job, reference)
        self._check_model(job, direct)
        return direct

    def _plans(self, job: Job) -> Iterator[tuple[str, Array, tuple[int, ...] | None]]:
        """Yields plans of one row: name, result, and latents of each step if these are fixed."""
        for chunk in dict.fromkeys((1, 2, DEFAULT_CHUNK)):
            self._advance(f"{job.verb}: steps of {chunk}")
            yield f"steps of {chunk}", plans.run_chunks(job, chunk), tuple(even_chunks(job.latents, chunk))
        self._advance(f"{job.verb}: ragged steps")
        ragged = plans.ragged_steps(job.latents)
        yield f"ragged steps {plans.describe_steps(ragged)}", plans.run_steps(job, ragged), ragged
        self._advance(f"{job.verb}: odd pushes")
        yield "pushes of 1, 3, 5, 7", plans.run_odd_pushes(job), None
        self._advance(f"{job.verb}: snapshot and restore")
        yield "3 snapshots, restored", plans.run_snapshots(job), None

    def _check_rows(self, job: Job, reference: Array) -> None:
        """Checks two streams that share a batch."""
        self._advance(f"{job.verb}: two rows")
        other = plans.make_companion(job)
        first, second = plans.run_interleaved(job, other)
        expected, late = plans.run_chunks(other, other.latents), "two rows: joins later, leaves earlier"
        self._check_stream(PLAN_INVARIANCE, job, "two rows: the first", first, reference, None)
        self._check_stream(PLAN_INVARIANCE, other, late, second, expected, None)

    def _check_reference(self, job: Job, streamed: Array) -> None:
        if self.reference is None:
            return
        self._advance(f"{job.verb}: ONNX Runtime")
        expected = plans.run_chunks(replace(job, bundle=self.reference), DEFAULT_CHUNK)
        rule = reference_rule(self.described, self.precision)
        check = self._compare(BACKEND_ONNXRUNTIME, job, _COMPARED, (streamed, expected), rule)
        self.checks.append(self._search_backend(check, job))

    def _check_model(self, job: Job, direct: Array) -> None:
        if self.against is None:
            return
        import torch

        rule = model_rule(self.described, self.precision)
        for dtype in (torch.float32, torch.float64):
            name = str(dtype).removeprefix("torch.")
            self._advance(f"{job.verb}: PyTorch {name}")
            expected = run_model(self.against, dtype, job)
            check = self._compare(f"{BACKEND_MODEL} {name}", job, "direct", (direct, expected), rule)
            self.checks.append(self._search_backend(check, job))

    def _check_stream(
        self, name: str, job: Job, plan: str, actual: Array, expected: Array, steps: Sequence[int] | None
    ) -> None:
        check = self._compare(name, job, plan, (actual, expected))
        if self.described.get("name") != "onnxruntime":
            # Plans are compared by tensor on ONNX Runtime only; this compares with the reference.
            check = self._search_backend(check, job)
        elif not check.equal_bits and steps is not None:
            search = search_direct if name == STREAM_DIRECT else search_plans
            check = self._search(check, name, job, lambda: search(job, steps))
        self.checks.append(check)

    def _search_backend(self, check: Check, job: Job) -> Check:
        """Adds where the backend differs from ONNX Runtime to a check that failed."""
        reference = self.reference
        if check.passed or reference is None:
            return check
        rule, steps = reference_rule(self.described, self.precision), even_chunks(job.latents, DEFAULT_CHUNK)
        return self._search(
            check, BACKEND_ONNXRUNTIME, job, lambda: search_backend(job, reference, tuple(steps), rule)
        )

    def _search(self, check: Check, name: str, job: Job, search: Callable[[], str]) -> Check:
        """Searches once per statement and direction: further plans mostly differ alike."""
        if (name, job.direction) in self.searched:
            return check
        self.searched.add((name, job.direction))
        self.progress(f"{job.verb}: searching the first tensor that differs", self.done, self.total)
        return replace(check, first_difference=run_search(self.precision, search))

    def _compare(
        self, name: str, job: Job, plan: str, arrays: tuple[Array, Array] | str, rule: Rule | None = None
    ) -> Check:
        """Compares a result with what was expected, or records why that cannot be done."""
        rule = rule or self.rules[name]
        picture = job.direction == "decoder"
        rounded, allowed = None, rule.tolerance
        if isinstance(arrays, str):
            found = not_compared(arrays)
        else:
            actual, expected = arrays
            found, allowed = measure(actual, expected, picture=picture), rule.allowed(expected)
            if picture and found.problem is None:
                rounded = bool(np.array_equal(_to_uint8(actual), _to_uint8(expected)))
        return Check(
            name=name,
            direction=job.verb,
            backend=" ".join(self.described[key] for key in ("name", "provider") if key in self.described),
            plan=plan,
            frames=job.frames if found.elements else 0,
            passed=rule.accepts(found, allowed),
            tolerance=allowed,
            rule=rule.text,
            reason=rule.reason,
            equal_uint8=rounded,
            **vars(found),
        )

    def _statement(self, direction: Direction) -> str:
        return STREAM_DIRECT if self._has_direct(direction) else STREAM_ONE_CALL

    def _has_direct(self, direction: Direction) -> bool:
        return f"{direction}.direct" in self.bundle.manifest.graphs

    def _advance(self, stage: str) -> None:
        self.progress(stage, self.done, self.total)
        self.done += 1


def _hashes(direction: Direction, result: Array) -> dict[str, tuple[str, ...]]:
    arrays = {"latents": result}
    if direction == "decoder":
        arrays = {"frames_float32": result, "frames_uint8": _to_uint8(result)}
    return {name: tuple(array_sha256(frame) for frame in array) for name, array in arrays.items()}


def _to_uint8(frames: Array) -> npt.NDArray[np.uint8]:
    """Rounds float frames (T, H, W, 3) as the decoder stream does; NaN becomes black."""
    finite = np.nan_to_num(frames.astype(np.float32, copy=False), nan=-1.0)
    return to_uint8_frames(finite.transpose(0, 3, 1, 2), *frames.shape[1:3])

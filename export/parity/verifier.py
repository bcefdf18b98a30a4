"""Runs the statements of parity on a bundle: plan invariance, stream = direct, backend = model,
backend = ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError
from wfvae.export.parity.certificate import array_sha256, frame_hashes
from wfvae.export.parity.difference import Array, Difference, measure, nothing
from wfvae.export.parity.direct import ModelReference, require_checkpoint, run_direct
from wfvae.export.parity.plans import (
    Job,
    chunked,
    companion,
    describe_steps,
    interleaved,
    odd_pushes,
    ragged_steps,
    single_call,
    stepped,
    suspended,
)
from wfvae.export.parity.rules import Rule, is_reference, model_rule, plan_rule, reference_rule, stream_rule
from wfvae.export.parity.verification import Check, NotAvailable, Verification
from wfvae.runtime.bundle import Bundle, open_bundle
from wfvae.runtime.pixels import to_uint8_frames
from wfvae.runtime.stream import DEFAULT_CHUNK
from wfvae.spec.frames import even_chunks
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


def verify(
    bundle: Bundle,
    frames: npt.NDArray[np.uint8],
    *,
    against: WFVAE | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Verification:
    """Checks a bundle on a video, in both directions; the decoder gets the encoder's direct
    latents.

    Args:
        bundle: opened on the backend in question.
        frames: (T, H, W, 3) uint8, T >= 1. All of it is held in memory several times, and runs as
            one step.
        against: the model of the checkpoint that the bundle was exported from; it is not changed.
        progress: called with a stage's name and how many of how many stages are done.

    Raises:
        InputError: `frames` is not such a video.
        CheckpointError: `against` is another checkpoint.
        BundleError, ResourceError: the backend cannot run the bundle at this size.
    """
    if (
        not isinstance(frames, np.ndarray)
        or frames.ndim != 4
        or frames.shape[3] != 3
        or frames.dtype != np.uint8
        or frames.size == 0
    ):
        given = (
            f"{frames.dtype} of shape {frames.shape}"
            if isinstance(frames, np.ndarray)
            else type(frames).__name__
        )
        raise InputError(f"frames are {given}; expected uint8 of shape (T, H, W, 3) with at least 1 frame")
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

    def run(self) -> Verification:
        bundle, hashes = self.bundle, dict[str, tuple[str, ...]]()
        self.described = bundle.backend.describe()
        precision = bundle.manifest.precision
        self.rules = {
            name: plan_rule(self.described, precision) for name in (PLAN_INVARIANCE, STREAM_ONE_CALL)
        }
        self.rules[STREAM_DIRECT] = stream_rule(self.described, precision)
        missing = []
        clips = self._clips()
        self.reference = self._open_reference()
        # Per direction: whole clip direct, seven plans, one stream per further clip, two precisions
        # of the model, the other backend.
        self.total = 2 * (
            7 + len(clips) + (2 if self.against is not None else 0) + (self.reference is not None)
        )
        latents: dict[str, Array] = {}
        for direction in DIRECTIONS:
            if not self._has_direct(direction):
                reason = (
                    "the bundle has no direct graph, so one step of everything stands for it; export with"
                    " --direct"
                )
                missing.append(NotAvailable("direct graph", _verb(direction), reason))
            if self.reference is None and not is_reference(self.described):
                missing.append(NotAvailable(BACKEND_ONNXRUNTIME, _verb(direction), _NO_BFLOAT16))
            for label, clip in clips.items():
                job = self._job(direction, clip, latents.get(label))
                if job is None:
                    self._skip(direction, label, len(clip))
                    continue
                result = self._verify_clip(job, label)
                if direction == "encoder":
                    latents[label] = result
                if label == _WHOLE:
                    hashes |= _hashes(direction, result)
        height, width = self.frames.shape[1:3]
        video = {
            "frames": len(self.frames),
            "height": height,
            "width": width,
            "sha256": array_sha256(self.frames),
        }
        # Again: by now it is known what has been loaded, and whether something fell back.
        return Verification(
            tuple(self.checks), tuple(missing), bundle.manifest, bundle.backend.describe(), video, hashes
        )

    def _open_reference(self) -> Bundle | None:
        """The bundle on ONNX Runtime's CPU provider; None if that is what is verified, or if it
        can't run this precision.
        """
        if is_reference(self.described) or self.bundle.manifest.precision == "bf16":
            return None
        threads = self.described.get("threads", "all")
        return open_bundle(
            self.bundle.path,
            "onnxruntime",
            provider="cpu",
            threads=int(threads) if threads.isdecimal() else None,
            verify=False,
        )

    def _clips(self) -> dict[str, npt.NDArray[np.uint8]]:
        """The video, one of a length that is not 1 + r n, and an image."""
        count = len(self.frames)
        clips = {_WHOLE: self.frames}
        if count > 2 and (count - 1) % self.bundle.ratio == 0:
            clips[f"first {count - 1} frames"] = self.frames[:-1]
        if count > 1:
            clips["image"] = self.frames[:1]
        return clips

    def _job(self, direction: Direction, clip: Array, latents: Array | None) -> Job | None:
        """None if the decoder has no latents that it could take."""
        count, height, width = clip.shape[:3]
        if direction == "encoder":
            return Job(self.bundle, direction, clip, count, height, width)
        if latents is None or not np.isfinite(latents).all():
            return None
        channels = int(self.bundle.manifest.graphs["decoder"].inputs[0].shape[2])  # of moments, the means
        return Job(self.bundle, direction, np.ascontiguousarray(latents[:, :channels]), count, height, width)

    def _verify_clip(self, job: Job, label: str) -> Array:
        """All checks of one clip in one direction. Returns its direct result."""
        direct_name = STREAM_DIRECT if self._has_direct(job.direction) else STREAM_ONE_CALL
        whole = label == _WHOLE
        self._advance(f"{_verb(job.direction)} {label}: direct")
        reference = single_call(job) if whole else None
        direct = (
            run_direct(job)
            if self._has_direct(job.direction)
            else single_call(job)
            if reference is None
            else reference
        )
        if reference is None:
            self._stream_check(direct_name, job, f"{label}, steps of 1", chunked(job, 1), direct, _ones(job))
            return direct
        steps = (job.latents,)
        if self._has_direct(job.direction):
            self._stream_check(direct_name, job, "one step", reference, direct, steps)
        for plan, streamed, steps_taken in self._plans(job):
            self._stream_check(PLAN_INVARIANCE, job, plan, streamed, reference, steps_taken)
            if plan == "steps of 1":
                self._stream_check(direct_name, job, plan, streamed, direct, steps_taken)
            if plan == _COMPARED:
                self._compare_reference(job, streamed)
        self._interleaved(job, reference)
        self._compare_model(job, direct)
        return direct

    def _plans(self, job: Job) -> Iterator[tuple[str, Array, tuple[int, ...] | None]]:
        """Plans of one row: name, result, and the latents of each step where these are fixed."""
        verb = _verb(job.direction)
        for chunk in dict.fromkeys((1, 2, DEFAULT_CHUNK)):
            self._advance(f"{verb}: steps of {chunk}")
            yield f"steps of {chunk}", chunked(job, chunk), tuple(even_chunks(job.latents, chunk))
        self._advance(f"{verb}: ragged steps")
        ragged = ragged_steps(job.latents)
        yield f"ragged steps {describe_steps(ragged)}", stepped(job, ragged), ragged
        self._advance(f"{verb}: odd pushes")
        yield "pushes of 1, 3, 5, 7", odd_pushes(job), None
        self._advance(f"{verb}: snapshot and restore")
        yield "3 snapshots, restored", suspended(job), None

    def _interleaved(self, job: Job, reference: Array) -> None:
        self._advance(f"{_verb(job.direction)}: two rows")
        other = companion(job)
        first, second = interleaved(job, other)
        self._stream_check(PLAN_INVARIANCE, job, "two rows: the first", first, reference, None)
        self._stream_check(
            PLAN_INVARIANCE, other, "two rows: joins later, leaves earlier", second, single_call(other), None
        )

    def _compare_reference(self, job: Job, streamed: Array) -> None:
        if self.reference is None:
            return
        self._advance(f"{_verb(job.direction)}: ONNX Runtime")
        expected = chunked(replace(job, bundle=self.reference), DEFAULT_CHUNK)
        rule = reference_rule(self.described, self.bundle.manifest.precision)
        check = self._check(BACKEND_ONNXRUNTIME, job, _COMPARED, streamed, expected, rule)
        self.checks.append(self._searched_backend(check, job))

    def _compare_model(self, job: Job, direct: Array) -> None:
        if self.against is None:
            return
        import torch

        mean_only = self.bundle.manifest.latents == "mean"
        for dtype in (torch.float32, torch.float64):
            precision = str(dtype).removeprefix("torch.")
            self._advance(f"{_verb(job.direction)}: PyTorch {precision}")
            expected = ModelReference(self.against, dtype, mean_only).run(job)
            rule = model_rule(self.described, self.bundle.manifest.precision)
            check = self._check(f"{BACKEND_MODEL} {precision}", job, "direct", direct, expected, rule)
            self.checks.append(self._searched_backend(check, job))

    def _stream_check(
        self, name: str, job: Job, plan: str, actual: Array, expected: Array, steps: tuple[int, ...] | None
    ) -> None:
        check = self._check(name, job, plan, actual, expected, self.rules[name])
        if self.described.get("name") != "onnxruntime":
            # There, plans are not compared tensor by tensor; but what goes wrong is as a rule wrong
            # beside the reference, too.
            check = self._searched_backend(check, job)
        # One search per statement and direction: further plans differ by the same tensor, as a
        # rule.
        elif not check.equal_bits and steps is not None and (name, job.direction) not in self.searched:
            self.searched.add((name, job.direction))
            from wfvae.export.parity.layer_search import search_direct, search_plans

            self._say_search(job)
            found = search_direct(job, steps) if name == STREAM_DIRECT else search_plans(job, steps)
            check = replace(check, first_difference=found)
        self.checks.append(check)

    def _searched_backend(self, check: Check, job: Job) -> Check:
        """The check with where this backend parts from ONNX Runtime, if it failed; searched once
        per direction.
        """
        if check.passed or self.reference is None or (BACKEND_ONNXRUNTIME, job.direction) in self.searched:
            return check
        self.searched.add((BACKEND_ONNXRUNTIME, job.direction))
        from wfvae.export.parity.backend_search import search_backend

        self._say_search(job)
        rule = reference_rule(self.described, self.bundle.manifest.precision)
        return replace(
            check,
            first_difference=search_backend(
                job, self.reference, tuple(even_chunks(job.latents, DEFAULT_CHUNK)), rule
            ),
        )

    def _say_search(self, job: Job) -> None:
        self.progress(
            f"{_verb(job.direction)}: looking for the first tensor that differs", self.done, self.total
        )

    def _check(self, name: str, job: Job, plan: str, actual: Array, expected: Array, rule: Rule) -> Check:
        picture = job.direction == "decoder"
        difference = measure(actual, expected, picture=picture)
        rounded = _equal_uint8(actual, expected) if picture and difference.problem is None else None
        return self._make(
            name, job.direction, plan, job.frames, difference, rule, rule.allowed(expected), rounded
        )

    def _make(
        self,
        name: str,
        direction: Direction,
        plan: str,
        frames: int,
        found: Difference,
        rule: Rule,
        allowed: float,
        rounded: bool | None,
    ) -> Check:
        return Check(
            name=name,
            direction=_verb(direction),
            backend=" ".join(self.described[key] for key in ("name", "provider") if key in self.described),
            plan=plan,
            frames=frames if found.elements else 0,
            equal_bits=found.equal_bits,
            max_abs=found.max_abs,
            max_ulp=found.max_ulp,
            psnr_db=found.psnr_db,
            passed=rule.accepts(found, allowed),
            equal_share=found.equal_share,
            tolerance=allowed,
            rule=rule.text,
            reason=rule.reason,
            ulp_histogram=found.ulp_histogram,
            equal_uint8=rounded,
            problem=found.problem,
        )

    def _skip(self, direction: Direction, label: str, frames: int) -> None:
        problem = nothing("nothing was compared: the encoder's latents are not finite")
        name = STREAM_DIRECT if self._has_direct(direction) else STREAM_ONE_CALL
        self.checks.append(
            self._make(
                name, direction, label, frames, problem, self.rules[name], self.rules[name].tolerance, None
            )
        )

    def _has_direct(self, direction: Direction) -> bool:
        return f"{direction}.direct" in self.bundle.manifest.graphs

    def _advance(self, stage: str) -> None:
        """Says that `stage` begins."""
        self.progress(stage, self.done, self.total)
        self.done += 1


_WHOLE = "video"
_COMPARED = f"steps of {DEFAULT_CHUNK}"
_NO_BFLOAT16 = (
    "ONNX Runtime's CPU provider has no bfloat16 convolution; compare with the model (--against), or another"
    " precision's bundle"
)


def _verb(direction: Direction) -> str:
    return "encode" if direction == "encoder" else "decode"


def _ones(job: Job) -> tuple[int, ...]:
    return (1,) * job.latents


def _hashes(direction: Direction, result: Array) -> dict[str, tuple[str, ...]]:
    if direction == "encoder":
        return {"latents": frame_hashes(result)}
    return {"frames_float32": frame_hashes(result), "frames_uint8": frame_hashes(_to_uint8(result))}


def _equal_uint8(actual: Array, expected: Array) -> bool:
    return bool(np.array_equal(_to_uint8(actual), _to_uint8(expected)))


def _to_uint8(frames: Array) -> npt.NDArray[np.uint8]:
    """Float frames (T, H, W, 3) rounded as the decoder stream rounds them; NaN becomes black."""
    finite = np.nan_to_num(frames.astype(np.float32, copy=False), nan=-1.0)
    return to_uint8_frames(finite.transpose(0, 3, 1, 2), *frames.shape[1:3])

"""How well does a diffusion model learn the latents of a bundle (paper: section 4.1, Table 2)?

    python benchmarks/generation.py --work run --json generation-tiny.json       procedural videos
    python benchmarks/generation.py --work run --bundles ours=bundle theirs=other \\
        --videos ucf101.csv --label class --real ucf101/ --latte L --size 256 --steps 100000 \\
        --batch 32 --device cuda --precision bf16 --fvd i3d.pt --classes c3d.pt

For each bundle: encodes the videos to shards of latents (`wfvae encode-dataset`), trains Latte on
them, samples, decodes by streaming, writes videos, and scores them. All bundles have the same
videos, seeds and steps. The same command continues: shards, training and samples that are there
are kept.

    WORK/NAME/latents/          shards
    WORK/NAME/checkpoint.pt     of the training
    WORK/NAME/samples-STEP/     generated videos, lossless
    WORK/NAME/samples.mp4       some of them, side by side
    WORK/samples.png            some frames of some of them, beside real videos
    WORK/loss.svg               loss curves
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from charts import draw, generation_loss
from harness.generated import (
    clips_of,
    distance,
    procedural_videos,
    score_classes,
    write_contact_sheet,
    write_grid,
    write_lossless,
)
from harness.latte import NOISE_STEPS, SIZES, Settings, Training, sample
from harness.record import CommandLine, finish, positive

from wfvae import WFVAE
from wfvae.errors import WFVAEError
from wfvae.evaluation.video_features import VideoFeatures
from wfvae.export.bundle import export_bundle
from wfvae.runtime import open_bundle
from wfvae.runtime.autoencoder import BundleAutoencoder
from wfvae.runtime.dataset.job import encode_dataset
from wfvae.runtime.dataset.options import ClipOptions
from wfvae.train.latents import LatentShards
from wfvae.video.synthetic.scenes import SCENES

TINY = "tiny"
SCORED_FRAMES = 16
CLIPS_PER_VIDEO = 8
"""Of procedural videos."""
SHOWN, GRID = 6, 16
"""Clips in the picture and in the video of samples."""
CURVE_POINTS = 100


def named(text: str) -> tuple[str, Path]:
    """Parses "NAME=DIR"."""
    name, equals, folder = text.partition("=")
    if not (name.replace("-", "").isalnum() and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR with a NAME of letters and digits")
    return name, Path(folder)


def parse(arguments: Sequence[str] | None) -> Any:
    parser = CommandLine(__doc__, "generation-tiny.json", frames=17, size=64)
    add = parser.add_argument
    add("--work", type=Path, metavar="DIR", help="where everything is kept; by default a temporary folder")
    text = "bundles to compare; by default the trained tiny model"
    add("--bundles", type=named, nargs="+", default=[], metavar="NAME=DIR", help=text)
    text = "source of `wfvae encode-dataset`; by default procedural videos of one scene each"
    add("--videos", metavar="SOURCE", help=text)
    add("--clips", type=positive, default=1024, help="procedural clips")
    text = "shards that are there already, instead of --videos"
    add("--latents", type=named, nargs="+", default=[], metavar="NAME=DIR", help=text)
    text = "column of the class, for class-conditional generation; of procedural videos: scene"
    add("--label", metavar="COLUMN", help=text)
    add("--latte", choices=SIZES, default="tiny", help="size of the transformer")
    add("--steps", type=positive, default=2000, help="of each training, in all")
    add("--minutes", type=float, help="end each training after so long, in all")
    add("--batch", type=positive, default=32, help="clips per step")
    add("--learning-rate", type=float, default=1e-4, help="of AdamW, constant")
    add("--average", type=float, default=0.9999, help="largest decay of the weights' average, which samples")
    text = "normalise latents by the bundle's scale and shift, or per channel by the data"
    add("--normalise", choices=("bundle", "measured"), default="measured", help=text)
    add("--save-every", type=positive, default=1000, help="steps")
    add("--seed", type=int, default=0, help="of initial weights, order, noise and samples")
    add("--device", default="cpu", help="of Latte, such as cuda; the bundle runs as --backend says")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the training")
    add("--backend", default="auto", help="of the bundle")
    add("--samples", type=positive, default=2048, help="videos that are generated and scored")
    add("--sampler", choices=("ddpm", "ddim"), default="ddpm", help="of diffusers")
    add("--sampling-steps", type=positive, default=250, help=f"at most {NOISE_STEPS}")
    add("--sampling-batch", type=positive, default=16, help="videos sampled at once")
    add("--guidance", type=float, default=1.0, help="classifier-free guidance; 1 is none")
    text = "folder of videos to compare with; by default the procedural ones"
    add("--real", type=Path, metavar="DIR", help=text)
    text = "TorchScript features of clips for FVD, as --i3d of `wfvae evaluate`"
    add("--fvd", type=Path, metavar="FILE", help=text)
    text = "TorchScript classifier of such clips for IS, which returns logits (1, classes)"
    add("--classes", type=Path, metavar="FILE", help=text)
    add("--probabilities", action="store_true", help="the classifier ends in a softmax")
    options = parser.parse_args(arguments)
    if options.sampling_steps > NOISE_STEPS:
        parser.error(f"--sampling-steps is {options.sampling_steps}; expected at most {NOISE_STEPS}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device is {options.device}, and there is no CUDA device; use cpu")
    names = set(dict(options.bundles)) or {TINY}
    without = names - set(dict(options.latents))
    if options.latents and options.videos is None and without:
        parser.error(f"--latents has no shards for {', '.join(sorted(without))}; give them, or --videos")
    return options


class Comparison:
    """The stages of one command."""

    def __init__(self, options: Any, work: Path) -> None:
        self._options, self._work = options, work
        self._source, self._real = options.videos, options.real
        self._label = options.label
        self._networks = {
            output: VideoFeatures(path, output)
            for output, path in (("features", options.fvd), ("classes", options.classes))
            if path is not None
        }
        if self._source is None and not options.latents:
            # At least one video of each scene, if there are so many clips.
            each = max(1, min(CLIPS_PER_VIDEO, options.clips // len(SCENES)))
            count = -(-options.clips // each)
            table = procedural_videos(work / "videos", count, each * options.frames, options.size)
            self._source, self._real = str(table), self._real or table.parent

    def bundles(self) -> dict[str, Path]:
        """Returns the bundles by name, after exporting the tiny model if none is given."""
        if self._options.bundles:
            return dict(self._options.bundles)
        folder = self._work / "bundle"
        if not folder.exists():
            export_bundle(WFVAE.from_pretrained("tiny"), folder)
        return {TINY: folder}

    def train(self, name: str, bundle: Path) -> Training:
        """Encodes the videos, and trains on their latents."""
        options = self._options
        shards = dict(options.latents).get(name)
        if shards is None:
            shards = self._work / name / "latents"
            clips = ClipOptions(frames=options.frames, size=(options.size, options.size))
            execution = {"backend": options.backend}
            report = encode_dataset(bundle, self._source, shards, clips, execution=execution)
            if report.failures:
                note(f"{name}: {len(report.failures)} videos failed, see {shards / 'failures.jsonl'}")
        settings = Settings(
            options.latte,
            options.batch,
            options.learning_rate,
            options.average,
            options.seed,
            options.precision,
            self._label,
            options.normalise,
        )
        dataset = LatentShards(shards, options.batch, options.seed, scaled=False)
        config = BundleAutoencoder(bundle, backend=options.backend).config
        factors = (config.latents_mean, config.latents_std)
        training = Training(settings, dataset, self._work / name, factors, torch.device(options.device))
        seconds = None if options.minutes is None else 60 * options.minutes
        training.run(options.steps, seconds, options.save_every, lambda line: note(f"{name}: {line}"))
        return training

    def generate(self, name: str, bundle: Path, training: Training) -> Path:
        """Samples and decodes the videos that are missing, and returns their folder."""
        options = self._options
        drawn = f"{options.sampler}{options.sampling_steps}-guidance{options.guidance:g}"
        folder = self._work / name / f"samples-{training.step}-{drawn}"
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{number:06d}.mkv" for number in range(options.samples)]
        opened = open_bundle(bundle, backend=options.backend)
        model: Any = training.average.module
        for first in range(0, len(paths), options.sampling_batch):
            batch = enumerate(paths[first : first + options.sampling_batch])
            missing = {path: row for row, path in batch if not path.exists()}
            if not missing:
                continue
            # Whole batches, so that samples after a resume have the bits of an uninterrupted run.
            latents = sample(
                model,
                range(first, min(first + options.sampling_batch, len(paths))),
                options.seed,
                options.sampler,
                options.sampling_steps,
                options.guidance,
                torch.device(options.device),
            ).transpose(1, 2)
            for path, row in missing.items():
                write_lossless(path, opened.decode(latents[row].numpy(), frames=options.frames))
            note(f"{name}: {min(first + options.sampling_batch, len(paths))} of {len(paths)} videos")
        return folder

    def score(self, folder: Path) -> dict[str, Any]:
        """Returns FVD and IS of generated videos, or why they are not measured."""
        options = self._options
        frames = min(SCORED_FRAMES, options.frames)

        def clips(source: Path) -> Any:
            return clips_of(source, options.samples, frames, options.size, options.seed)

        scores: dict[str, Any] = {}
        if "features" not in self._networks:
            scores["fvd"] = {"not_measured": "needs a feature file, --fvd"}
        elif self._real is None:
            scores["fvd"] = {"not_measured": "needs real videos, --real"}
        else:
            scores["fvd"] = distance(self._networks["features"], clips(self._real), clips(folder))
        if "classes" in self._networks:
            logits = not options.probabilities
            scores["is"] = score_classes(self._networks["classes"], clips(folder), logits=logits)
        else:
            scores["is"] = {"not_measured": "needs a classifier, --classes"}
        return scores

    def run(self) -> list[dict[str, Any]]:
        """Runs all stages, and returns a row per bundle."""
        options, rows, shown = self._options, [], {}
        if self._real is not None:
            shown["real"] = list(clips_of(self._real, SHOWN, options.frames, options.size))
        for name, bundle in self.bundles().items():
            training = self.train(name, bundle)
            folder = self.generate(name, bundle, training)
            clips = list(clips_of(folder, GRID, options.frames, None))
            shown[name] = clips[:SHOWN]
            write_grid(self._work / name / "samples.mp4", clips)
            rows.append(
                {
                    "name": name,
                    "parameters": training.parameters,
                    "classes": training.survey.classes,
                    "latent_shape": training.survey.shape,
                    "latent_deviation": training.survey.deviation,
                    "steps": training.step,
                    "seconds": training.seconds,
                    "loss": curve(training.losses),
                    **self.score(folder),
                }
            )
        write_contact_sheet(self._work / "samples.png", shown)
        draw(generation_loss, {"rows": rows}, self._work / "loss.svg")
        return rows


def curve(losses: Sequence[float]) -> dict[str, list[float]]:
    """Returns means of equally many consecutive steps, and the last step of each."""
    each = max(1, len(losses) // CURVE_POINTS)
    ends = range(each, len(losses) + 1, each)
    return {"steps": list(ends), "means": [sum(losses[end - each : end]) / each for end in ends]}


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            rows = Comparison(options, options.work or Path(temporary)).run()
    except WFVAEError as error:
        note(f"error: {error}")
        return 2
    kept = ("frames", "size", "latte", "batch", "learning_rate", "average", "normalise", "seed", "label")
    kept += ("device", "precision", "samples", "sampler", "sampling_steps", "guidance")
    job = {name: getattr(options, name) for name in kept}
    job["videos"] = "procedural" if options.videos is None and not options.latents else "given"
    finish(options, "generation", job=job, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

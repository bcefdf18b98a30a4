"""`wfvae evaluate`, from video files to results."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if missing := [name for name in ("skimage", "scipy", "lpips") if find_spec(name) is None]:
    pytest.skip(f"needs the extra eval: {missing[0]} is not installed", allow_module_level=True)

from fixtures.program import Program, clip, load, save  # noqa: E402
from wfvae.cli import evaluate_run as command  # noqa: E402
from wfvae.evaluation import evaluator  # noqa: E402
from wfvae.evaluation.frechet import FeatureMoments, frechet_distance  # noqa: E402
from wfvae.evaluation.protocol import Protocol, open_prepared, square  # noqa: E402
from wfvae.evaluation.scores import mean_interval  # noqa: E402
from wfvae.evaluation.video_files import find_videos  # noqa: E402
from wfvae.metrics.frames import score_frames  # noqa: E402
from wfvae.runtime import Bundle, open_bundle  # noqa: E402
from wfvae.runtime.media.image_folder import PNGFolder  # noqa: E402

LOSSLESS = {"codec": "ffv1", "pixel_format": "bgr0"}
NO_LPIPS = ("--lpips-weights", "none")
NINE = ("--frames", 9, "--size", 48, *NO_LPIPS)
TINY = ("--frames", 4, "--size", 32, *NO_LPIPS)


def damaged(frames: np.ndarray, amount: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-amount, amount + 1, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def folder_of(folder: Path, videos: dict[str, np.ndarray], suffix: str = "mkv", **options: Any) -> Path:
    for name, frames in videos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save(folder / f"{name}.{suffix}", frames, **(options or LOSSLESS))
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos = {name: clip(9, 48, 64, seed=index) for index, name in enumerate(("a", "sub/b", "c"))}
    return folder_of(tmp_path_factory.mktemp("set") / "real", videos, "mp4", crf=16)


@pytest.fixture(scope="module")
def poor(real: Path) -> Path:
    return encoded_again(real, "poor", crf=45)


@pytest.fixture(scope="module")
def better(real: Path) -> Path:
    return encoded_again(real, "better", crf=30)


def encoded_again(real: Path, name: str, **options: Any) -> Path:
    videos = {name: load(path)[0] for name, path in find_videos(real).items()}
    return folder_of(real.with_name(name), videos, **options)


def psnr_of(before: np.ndarray, after: np.ndarray) -> float:
    """Computes the mean PSNR of frames."""
    errors = ((before.astype(float) - after) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / errors)))


class Features(torch.nn.Module):
    """Means of two colours and number of frames. Fails for bright clips in a given way."""

    def __init__(self, failure: str = "") -> None:
        super().__init__()
        self.failure = failure

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = x.mean(dim=(2, 3, 4))[:, :2] + x.shape[2]
        if bool(x.mean() > 0.9):
            if self.failure == "raises":
                raise ValueError("much too bright")
            if self.failure == "returns NaN":
                features = features * float("nan")
            if self.failure == "returns less":
                features = features[:, :1]
        return features


class Switches(torch.nn.Module):
    """As the common I3D file: with arguments that are to be switched."""

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        features = x.mean(dim=(2, 3, 4))[:, :2] + x.shape[2]
        if rescale or resize or not return_features or x.shape[3] != 224:
            features = features[:, :1] * 0
        return features


def network(path: Path, module: torch.nn.Module | None = None) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module or Features()).save(str(path))
    return path


def test_folders_are_scored_and_written(program: Program, real: Path, poor: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--frames", 9, "--size", 48, "--lpips-weights", "random", "--worst", 1, "--out", out)
    report = program.done("evaluate", real, poor, *options, "--i3d", network(tmp_path / "net.pt"))
    assert report == json.loads((out / "evaluation.json").read_text())
    [entry] = report["reconstructions"]
    results = find_videos(poor)
    crops = {
        name: [load(one)[0][:, :, 8:56] for one in (path, results[name])]
        for name, path in find_videos(real).items()
    }
    psnr = {name: psnr_of(*pair) for name, pair in crops.items()}
    assert {video["name"]: video["psnr"] for video in entry["videos"]} == pytest.approx(psnr, abs=1e-9)
    found, expected = entry["metrics"]["psnr"], mean_interval(list(psnr.values()))
    assert found["videos"] == 3
    interval = [expected.value, expected.low, expected.high]
    assert [found["mean"], *found["interval"]] == pytest.approx(interval, abs=1e-4)
    assert entry["worst"]["psnr"] == [min(psnr, key=lambda name: psnr[name])]
    assert entry["metrics"]["lpips"]["mean"] > 0
    assert "random" in entry["metrics"]["lpips"]["network"]
    moments = FeatureMoments(), FeatureMoments()
    for pair in crops.values():
        for one, frames in zip(moments, pair, strict=True):
            video = np.stack([square(frame, 224) for frame in frames]) / 127.5 - 1
            one.add(video[..., :2].mean(axis=(0, 1, 2))[None] + 9)
    assert entry["metrics"]["fvd"]["value"] == pytest.approx(frechet_distance(*moments), abs=1e-6)
    assert (entry["metrics"]["fvd"]["clips"], entry["metrics"]["fvd"]["features"]) == (3, 2)
    markdown = " ".join((out / "evaluation.md").read_text().split())
    assert "| Channel | Model | TCPR | PSNR ↑ | SSIM ↑ | LPIPS ↓ | FVD ↓ |" in markdown
    assert f"{expected.value:.2f} ± " in markdown


def test_default_protocol_is_the_first_33_frames_of_256x256(program: Program, tmp_path: Path) -> None:
    frames = clip(34, 60, 88)
    other = damaged(frames, 25)
    other[33:] = 0  # another window is far off
    folders = [folder_of(tmp_path / name, {"a": one}) for name, one in (("real", frames), ("other", other))]
    [entry] = program.done("evaluate", *folders, *NO_LPIPS)["reconstructions"]
    assert entry["protocol"] == {"frames": 33, "size": 256, "window": "first"}
    [video] = entry["videos"]
    assert (video["frames"], video["height"], video["width"]) == (33, 256, 256)
    prepared = [np.stack([square(frame, 256) for frame in one[:33]]) for one in (frames, other)]
    assert video["psnr"] == pytest.approx(psnr_of(*prepared))


def test_whole_videos_give_several_clips_at_their_own_size(program: Program, tmp_path: Path) -> None:
    frames = clip(70, 16, 24)
    folders = [folder_of(tmp_path / str(noise), {"long": damaged(frames, noise)}) for noise in (0, 30)]
    options = ("--whole", *NO_LPIPS, "--i3d", network(tmp_path / "n.pt"))
    [entry] = program.done("evaluate", *folders, *options)["reconstructions"]
    [video] = entry["videos"]
    assert (video["frames"], video["height"], video["width"]) == (70, 16, 24)
    assert (entry["metrics"]["fvd"]["clips"], entry["metrics"]["fvd"]["frames_per_clip"]) == (2, 33)
    assert entry["metrics"]["psnr"]["interval"] is None, "one video has no interval"


def test_identical_frames_are_counted_and_never_averaged(
    program: Program, real: Path, tmp_path: Path
) -> None:
    same = Path(shutil.copytree(real, tmp_path / "same"))
    outcome = program("evaluate", real, same, *NINE)
    assert outcome.code == 0
    assert "27 of 27 frames are identical" in outcome.out and "∞" in outcome.out
    original = load(real / "a.mp4")[0]
    frames = original.copy()
    frames[3] = damaged(frames[3], 40)
    (same / "a.mp4").unlink()
    folder_of(same, {"a": frames})
    [entry] = program.done("evaluate", real, same, *NINE)["reconstructions"]
    alone = psnr_of(original[3:4, :, 8:56], frames[3:4, :, 8:56])
    assert (entry["videos"][0]["identical_frames"], entry["videos"][0]["psnr"]) == (8, pytest.approx(alone))
    found = entry["metrics"]["psnr"]
    assert (found["videos"], found["identical_frames"], found["identical_videos"]) == (1, 26, 2)
    assert found["mean"] == pytest.approx(alone)


def scores(entry: dict[str, Any]) -> list[float]:
    """Lists all numbers of all videos, which differ by rounding between pieces of frames."""
    keys = ("frames", "height", "width", "identical_frames", "psnr", "psnr_limited", "ssim")
    return [video[key] for video in entry["videos"] for key in keys]


def test_bundle_has_the_scores_of_its_lossless_reconstructions(
    program: Program, exported: Callable[..., Path], real: Path, tmp_path: Path
) -> None:
    bundle = exported("4x8x8-trilinear")
    options = ("--frames", 7, "--size", 32, "--window", "centre", *NO_LPIPS, "--threads", 1)
    report = program.done("evaluate", "--bundle", bundle, "--data", real, "--chunk", 1, *options)
    [entry] = report["reconstructions"]
    facts = entry["label"], entry["compression"], entry["latent_channels"]
    assert facts == ("4x8x8-trilinear", [4, 8, 8], 4)
    originals, results = {}, {}
    with open_bundle(bundle, threads=1) as opened:
        for name, path in find_videos(real).items():
            with open_prepared(path, Protocol(7, 32, "centre")) as prepared:
                originals[name] = np.stack(list(prepared.frames))
            results[name] = opened.decode(opened.encode(originals[name]), frames=7)
    prepared_folder, made = folder_of(tmp_path / "prepared", originals), folder_of(tmp_path / "made", results)
    for arguments in ((real, made, *options), (prepared_folder, made, "--whole", *NO_LPIPS)):
        [again] = program.done("evaluate", *arguments)["reconstructions"]
        assert scores(again) == pytest.approx(scores(entry), rel=1e-12)


def test_bundle_is_compared_with_another_and_with_files(
    program: Program, exported: Callable[..., Path], real: Path, poor: Path
) -> None:
    ours, theirs = exported("4x8x8-trilinear"), exported("small")
    options = ("--frames", 5, "--size", 32, *NO_LPIPS, "--threads", 1)
    [alone] = program.done("evaluate", "--bundle", theirs, "--data", real, *options)["reconstructions"]
    sets = ("--bundle", ours, "--data", real, "--compare-bundle", theirs, "--chunk", 1)
    report = program.done("evaluate", *sets, *options)
    assert report["difference"]["of"] == "small - 4x8x8-trilinear"
    first, second = report["reconstructions"]
    assert scores(second) == pytest.approx(scores(alone), rel=1e-12)
    assert (second["latent_channels"], second["compression"]) == (alone["latent_channels"], [4, 8, 8])
    pairs = zip(first["videos"], second["videos"], strict=True)
    differences = [after["psnr"] - before["psnr"] for before, after in pairs]
    assert [video["psnr"] for video in report["difference"]["videos"]] == pytest.approx(differences)
    sets = (real, poor, "--compare-bundle", theirs, "--compare-name", "it", "--chunk", 1)
    report = program.done("evaluate", *sets, *options)
    assert [entry["label"] for entry in report["reconstructions"]] == ["poor", "it"]
    assert scores(report["reconstructions"][1]) == pytest.approx(scores(alone), rel=1e-12)


ON_ITSELF = """\
--backend openvino --compare-precision-hint bf16 | openvino None cpu | openvino bf16 cpu | {} (bf16)
--precision-hint bf16 --compare-backend onnxruntime | auto bf16 cpu | onnxruntime None auto | {} (onnxruntime)
--compare-backend openvino --compare-name x | auto None cpu | openvino None auto | x"""


@pytest.mark.parametrize("row", ON_ITSELF.splitlines())
def test_bundle_is_compared_with_itself_on_another_backend(
    program: Program, exported: Callable[..., Path], real: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    """Which backend, hint and provider each set is opened with; their own tests check the rest."""
    from wfvae.runtime import bundle as module

    options, first, second, label = row.split(" | ")
    seen: list[str] = []

    def noting(path: Path, backend: str, *, precision_hint: Any, provider: str, **others: Any) -> Bundle:
        seen.append(f"{backend} {precision_hint} {provider}")
        return open_bundle(path, **others)

    monkeypatch.setattr(module, "open_bundle", noting)
    bundle = exported("4x8x8-trilinear")
    sets = ("--bundle", bundle, "--data", real, "--compare-bundle", bundle)
    common = f"--frames 1 --size 16 --threads 1 --provider cpu {options}".split()
    report = program.done("evaluate", *sets, *NO_LPIPS, *common)
    assert seen == [second, first], "the second is opened before the first"
    assert [entry["label"] for entry in report["reconstructions"]] == [bundle.name, label.format(bundle.name)]
    assert [video["psnr"] for video in report["difference"]["videos"]] == [0.0] * 3


def test_comparison_is_shown_and_written_under_its_labels(
    program: Program, real: Path, poor: Path, better: Path, tmp_path: Path
) -> None:
    labels = ["--name", "ours", "--channels", 8, "--compression", "4x8x8"]
    labels += ["--compare-name", "theirs", "--compare-channels", 16, "--compare-compression", "8X16x16"]
    report = program.done("evaluate", real, poor, "--compare", better, *labels, *NINE, "--out", tmp_path)
    facts = [[e["label"], e["latent_channels"], e["compression"]] for e in report["reconstructions"]]
    assert facts == [["ours", 8, [4, 8, 8]], ["theirs", 16, [8, 16, 16]]]
    difference = report["difference"]
    assert difference["of"] == "theirs - ours"
    one, two = ([video["psnr"] for video in entry["videos"]] for entry in report["reconstructions"])
    expected = mean_interval([after - before for before, after in zip(one, two, strict=True)])
    assert expected.value > 0
    assert difference["psnr"]["mean"] == pytest.approx(expected.value)
    assert difference["psnr"]["interval"] == pytest.approx([expected.low, expected.high])
    markdown = " ".join((tmp_path / "evaluation.md").read_text().split())
    assert (
        "## theirs minus ours, video by video" in markdown and "| 16 | theirs | 2048 (8×16×16) |" in markdown
    )
    text = program("evaluate", real, poor, "--compare", better, *NINE).out
    assert f"{expected.value:+.2f} ± " in text
    assert "the second is worse by PSNR in 0 of 3 videos\n" in text


def test_fvd_of_other_videos_is_not_subtracted(
    program: Program, real: Path, poor: Path, better: Path, tmp_path: Path
) -> None:
    options = (*TINY, "--i3d", network(tmp_path / "net.pt"))
    report = program.done("evaluate", real, poor, "--compare", better, *options)
    first, second = (entry["metrics"]["fvd"]["value"] for entry in report["reconstructions"])
    assert report["difference"]["fvd"] == {"value": pytest.approx(second - first)}
    fewer = Path(shutil.copytree(better, tmp_path / "fewer"))
    (fewer / "c.mkv").unlink()
    report = program.done("evaluate", real, poor, "--compare", fewer, "--matched", *options)
    assert report["difference"]["psnr"]["videos"] == 2
    assert report["difference"]["fvd"]["value"] is None
    assert "1 were scored in only one of the two, first 'c'" in report["difference"]["fvd"]["not measured"]


def test_videos_that_cannot_be_scored_are_skipped_with_the_reason(
    program: Program, real: Path, poor: Path, tmp_path: Path
) -> None:
    mixed = Path(shutil.copytree(poor, tmp_path / "mixed"))
    (mixed / "a.mkv").write_bytes(b"no video")
    save(mixed / "c.mkv", clip(9, 40, 40))
    outcome = program("evaluate", real, mixed, *NINE, "--json")
    assert outcome.code == 1
    [entry] = outcome.report["reconstructions"]
    assert [video["name"] for video in entry["videos"]] == ["sub/b"]
    reasons = {one["name"]: one["reason"] for one in entry["skipped"]}
    assert "mixed/a.mkv" in reasons["a"] and "40x40" in reasons["c"]
    assert "none of 3 videos could be scored" in program.refused("evaluate", real, poor, "--frames", 10)
    save(mixed / "a.mkv", load(poor / "a.mkv")[0][:8])
    [entry] = program("evaluate", real, mixed, "--whole", *NO_LPIPS, "--json").report["reconstructions"]
    assert "one ends after 8" in entry["skipped"][0]["reason"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "png"])
@pytest.mark.parametrize("window", ["first", "centre"])
def test_reconstruction_of_another_length_is_skipped_though_its_window_is_complete(
    program: Program, tmp_path: Path, suffix: str, window: str
) -> None:
    frames, counts = clip(12, 16, 16), {"cut": 9, "longer": 13, "prepared": 5, "whole": 12}
    real = folder_of(tmp_path / "real", dict.fromkeys(counts, frames), "mp4", crf=16)
    twice = damaged(np.concatenate([frames, frames]), 20)
    for name, count in counts.items():
        if suffix == "png":
            images = PNGFolder(tmp_path / "other" / name, "%d.png", 16, 16, overwrite=False)
            for frame in twice[:count]:
                images.write(frame)
        else:
            folder_of(tmp_path / "other", {name: twice[:count]}, suffix, crf=16)
    options = ("--frames", 5, "--size", 16, "--window", window, *NO_LPIPS, "--json")
    outcome = program("evaluate", real, tmp_path / "other", *options)
    [entry] = outcome.report["reconstructions"]
    assert [video["name"] for video in entry["videos"]] == ["prepared", "whole"] and outcome.code == 1
    cut, longer = (one["reason"] for one in entry["skipped"])
    assert "cut.mp4' has 12 frames and '" in cut and "' 9;" in cut
    assert "longer.mp4' has 12 frames and '" in longer and "' 13;" in longer


def test_common_i3d_file_is_switched_to_features_of_its_own_size(
    program: Program, real: Path, poor: Path, tmp_path: Path
) -> None:
    results = []
    for module in (Features(), Switches()):
        path = network(tmp_path / f"{type(module).__name__}.pt", module)
        [entry] = program.done("evaluate", real, poor, *TINY, "--i3d", path)["reconstructions"]
        results.append(entry["metrics"]["fvd"])
    assert results[0] == results[1]
    assert results[0]["features"] == 2


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        ("raises", "much too bright"),
        ("returns NaN", "NaN or infinite features"),
        ("returns less", "different lengths, 1 and 2"),
    ],
)
def test_video_on_which_the_feature_network_fails_is_skipped(
    program: Program, tmp_path: Path, failure: str, says: str
) -> None:
    """It fails on a reconstruction, when the original's features are known already."""
    for name, noise in (("real", 3), ("other", 9)):
        videos = {str(index): damaged(clip(3, 16, 16, seed=index), noise) for index in range(4)}
        videos["1"][:] = 255 if name == "other" else 0
        folder_of(tmp_path / name, videos)
    i3d = network(tmp_path / "net.pt", Features(failure))
    options = ("--frames", 3, "--size", 16, *NO_LPIPS, "--i3d", i3d, "--json")
    outcome = program("evaluate", tmp_path / "real", tmp_path / "other", *options)
    assert (outcome.code, outcome.err) == (1, "")
    [entry] = outcome.report["reconstructions"]
    assert [video["name"] for video in entry["videos"]] == ["0", "2", "3"]
    [skipped] = entry["skipped"]
    assert skipped["name"] == "1" and says in skipped["reason"]
    assert (entry["metrics"]["fvd"]["clips"], entry["metrics"]["fvd"]["features"]) == (3, 2)
    assert entry["metrics"]["fvd"]["value"] > 0


def test_lpips_without_its_backbone_is_not_measured(
    program: Program, real: Path, poor: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    report = program.done("evaluate", real, poor, "--frames", 9, "--size", 48)
    metrics = report["reconstructions"][0]["metrics"]
    assert metrics["psnr"]["mean"] > 10 and metrics["lpips"]["mean"] is None
    assert "no network here" in metrics["lpips"]["not measured"]
    assert "--i3d" in metrics["fvd"]["not measured"]


def test_interrupted_scores_are_kept(
    program: Program, real: Path, poor: Path, better: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first set is written before the second is scored, with one video and a half done."""
    path, pieces = tmp_path / "evaluation.json", iter(range(99))
    before: list[Any] = []

    def interrupting(*arguments: Any) -> Any:
        piece = next(pieces)
        if piece == 3 * 2:  # three videos in two pieces each
            before.extend(json.loads(path.read_text())["reconstructions"])
        if piece == 3 * 2 + 3:
            raise KeyboardInterrupt
        return score_frames(*arguments)

    monkeypatch.setattr(evaluator, "score_frames", interrupting)
    outcome = program("evaluate", real, poor, "--compare", better, *NINE, "--out", tmp_path, "--json")
    assert outcome.code == 130
    report = json.loads(path.read_text())
    assert report == outcome.report and "difference" not in report
    first, second = report["reconstructions"]
    assert before == [first]
    assert (first["label"], first["complete"], len(first["videos"])) == ("poor", True, 3)
    assert (second["label"], second["complete"], len(second["videos"])) == ("better", False, 1)


@pytest.mark.parametrize(
    ("readable", "says", "labels"),
    [
        (("abc", ""), "none of 3 videos could be scored", ["first"]),
        (("ab", "c"), "no video was scored in both", ["first", "second"]),
    ],
)
def test_scores_survive_a_comparison_that_fails(
    program: Program, real: Path, poor: Path, tmp_path: Path, readable: Any, says: str, labels: list[str]
) -> None:
    for name, stems in zip(("first", "second"), readable, strict=True):
        for path in Path(shutil.copytree(poor, tmp_path / name)).rglob("*.mkv"):
            if path.stem not in stems:
                path.write_bytes(b"no video")
    out = tmp_path / "out"
    sets = (real, tmp_path / "first", "--compare", tmp_path / "second")
    outcome = program("evaluate", *sets, *NINE, "--out", out, "--json")
    assert outcome.code == 2
    assert says in outcome.err and len(outcome.err.splitlines()) == 1
    assert outcome.report == json.loads((out / "evaluation.json").read_text())
    assert [entry["label"] for entry in outcome.report["reconstructions"]] == labels
    assert all(entry["complete"] for entry in outcome.report["reconstructions"])
    assert "difference" not in outcome.report


def test_scores_that_cannot_be_written_are_printed(
    program: Program, real: Path, poor: Path, better: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise command.ResourceError("cannot write: No space left on device")

    monkeypatch.setattr(command, "write_results", full)
    outcome = program("evaluate", real, poor, "--compare", better, *NINE, "--out", tmp_path, "--json")
    assert outcome.code == 2
    assert "No space left on device" in outcome.err and len(outcome.err.splitlines()) == 1
    assert outcome.report["difference"]["psnr"]["videos"] == 3


WRONG_USE = [
    ("", "REAL and RECON"),
    ("REAL POOR --bundle b --data d", "either"),
    ("--bundle b", "--data"),
    ("REAL POOR --whole --frames 3", "--whole"),
    ("REAL POOR --chunk 3", "--chunk"),
    ("REAL nowhere", "nowhere does not exist"),
    ("REAL POOR --i3d nowhere.pt", "nowhere.pt does not exist"),
    ("REAL POOR --i3d REAL/a.mp4", "TorchScript"),
    ("REAL POOR --lpips-weights nowhere.pth", "nowhere.pth"),
    ("REAL POOR --lpips-weights REAL/a.mp4", "a.mp4"),
    ("REAL POOR --channels 0", "--channels"),
    ("REAL POOR --compression 4x0x8", "'4x0x8' is not a compression"),
    ("REAL POOR --compare POOR --compare-compression 256", "'256' is not a compression"),
    ("--bundle b --data d --channels 8", "--channels was given for the bundle b"),
    ("REAL POOR --compare-bundle b --compare-channels 8", "--compare-channels was given for the bundle"),
    ("REAL POOR --compare-name x", "--compare-name is for a second set"),
    ("REAL POOR --compare POOR --compare-bundle b", "one of the two"),
    ("REAL POOR --compare POOR --compare-backend openvino", "--compare-backend is for --compare-bundle"),
    ("REAL POOR --compare-precision-hint bf16", "--compare-precision-hint is for --compare-bundle"),
    ("REAL POOR --lpips-weights none --out REAL/a.mp4", "a.mp4: "),
    ("REAL POOR --lpips-weights none --compare-bundle nowhere", "nowhere"),
    ("REAL POOR --lpips-weights none --compare-bundle BUNDLE --compare-backend steam", "'steam'"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG_USE)
def test_wrong_use_is_one_line_before_scoring(
    program: Program,
    exported: Callable[..., Path],
    real: Path,
    poor: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    says: str,
) -> None:
    monkeypatch.setattr(evaluator, "score_frames", lambda *arguments: pytest.fail("it began to score"))
    places = {"REAL": real, "POOR": poor, "BUNDLE": exported("4x8x8-trilinear")}
    for name, path in places.items():
        arguments = arguments.replace(name, str(path))
    assert says in program.refused("evaluate", *arguments.split())


@pytest.mark.parametrize("package", ["torch", "skimage", "scipy"])
def test_missing_package_names_the_extra(
    program: Program, real: Path, poor: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = program.refused("evaluate", real, poor)
    assert package in line and "pip install 'wfvae[eval]'" in line

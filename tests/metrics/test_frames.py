"""PSNR and SSIM of frames: against worked values and against a second library."""

import math
from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skimage")

from fixtures.program import clip  # noqa: E402
from wfvae.metrics.frames import score_frames  # noqa: E402
from wfvae.metrics.torchvision_operators import make_torchvision_importable  # noqa: E402


def test_psnr_of_worked_values() -> None:
    real = np.full((3, 16, 16, 3), 100, dtype=np.uint8)
    other = real.copy()
    other[0] += 5  # mean square 25
    other[1, 3, 4, 1] += 16  # 256 over 768 values
    scores = score_frames(real, other)
    expected = [20 * math.log10(255 / 5), 10 * math.log10(255**2 * 768 / 256)]
    assert scores.psnr[:2] == pytest.approx(expected, abs=1e-9)
    assert scores.psnr[2] == math.inf
    assert scores.ssim[2] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("amount", [1, 12, 90])
def test_psnr_and_ssim_agree_with_torchmetrics(amount: int) -> None:
    if find_spec("torchvision") is not None:
        make_torchvision_importable("the test", "eval")
    metrics = pytest.importorskip("torchmetrics.functional.image")
    real = clip(2, 24, 36)
    noise = np.random.default_rng(0).integers(-amount, amount + 1, real.shape)
    other = np.clip(real + noise, 0, 255).astype(np.uint8)
    scores = score_frames(real, other)
    tensors = [torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255 for frames in (other, real)]
    psnr = metrics.peak_signal_noise_ratio(*tensors, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert scores.psnr == pytest.approx(psnr.numpy(), abs=1e-5)
    # Its mean counts windows that reach beyond the frame; the map allows to leave them out.
    _, similarity = metrics.structural_similarity_index_measure(
        *tensors, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    assert scores.ssim == pytest.approx(similarity[:, :, 5:-5, 5:-5].mean(dim=(1, 2, 3)).numpy(), abs=1e-9)

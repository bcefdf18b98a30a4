"""Quality of reconstructions: PSNR, SSIM, LPIPS and FVD of videos, with intervals and comparisons.

See docs/evaluation.md.
"""

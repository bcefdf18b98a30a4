"""How good reconstructions are: PSNR, SSIM, LPIPS and FVD of videos, with intervals and paired
comparisons. See docs/evaluation.md.
"""

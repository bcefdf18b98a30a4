"""How far two videos are apart: PSNR, SSIM and LPIPS of frames."""

"""Training: clips from videos, the losses of the paper, and runs that resume exactly.

`wfvae.train.loop.train` runs a stage.
"""

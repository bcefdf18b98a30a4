"""Training: clips from videos, the losses of the paper, and runs that resume exactly.

`wfvae.train.run.train` runs a stage.
"""

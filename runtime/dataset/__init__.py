"""A data set of videos to shards of latents, on one machine or a Ray cluster.

To read it: `options` says what is made of a video, `videos` finds them, `plan` cuts the work into
parts, `worker` makes the shard of one part from videos that `decoding` reads in processes of their
own, `local` and `cluster` run workers, and `job` puts all of it together. `settings` says whether a
folder belongs to the job, and `report` writes its index. `conversion` makes shards of latents that
are there already, and back. The format of the shards is specified in `docs/datasets.md`;
`wfvae.spec.latent_shards` reads it.

Nothing is imported here, since the processes that decode need little.
"""

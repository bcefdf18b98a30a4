"""The subcommands of `wfvae`, one per file. Each adds its arguments and runs."""

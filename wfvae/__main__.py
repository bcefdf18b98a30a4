"""`python -m wfvae`."""

from wfvae.cli import main

raise SystemExit(main())

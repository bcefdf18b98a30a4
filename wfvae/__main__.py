"""`python -m wfvae`."""

from wfvae.cli.main import main

raise SystemExit(main())

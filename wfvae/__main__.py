"""`python -m wfvae` is the command line `wfvae`."""

import sys

from wfvae.cli import main

sys.exit(main())

"""What a library of others writes into the home folder."""

import os
from pathlib import Path

from fixtures.program import run_python


def test_running_a_bundle_writes_nothing_into_the_home_folder(tmp_path: Path, bundle: Path) -> None:
    code = """
import os, sys
os.environ["HOME"] = sys.argv[2]
import numpy as np
from wfvae.runtime import open_bundle
open_bundle(sys.argv[1], provider="cpu", threads=1).encode(np.zeros((1, 8, 8, 3), np.uint8))
"""
    assert "ORT_DISABLE_TELEMETRY" not in os.environ or os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    run_python(code, bundle, tmp_path)
    assert list(tmp_path.iterdir()) == []

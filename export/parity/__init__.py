"""Verification that a bundle's streams give what direct inference and the model give.

with open_bundle("bundle/") as bundle:
    verification = verify(bundle, frames, against=model)
verification.passed, verification.to_json(), verification.certificate("video.mp4")
"""

from wfvae.export.parity.difference import Difference, measure, ulp_distance
from wfvae.export.parity.verification import Check, NotAvailable, Verification, render_table
from wfvae.export.parity.verifier import verify

__all__ = [
    "Check",
    "Difference",
    "NotAvailable",
    "Verification",
    "measure",
    "render_table",
    "ulp_distance",
    "verify",
]

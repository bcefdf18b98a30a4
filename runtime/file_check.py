"""The check of a bundle's hashes, which reads the weights while a session loads them."""

import threading
from pathlib import Path

from wfvae.spec.manifest import WEIGHTS_NAME, Manifest


class FileCheck:
    """Compares the graphs when it is made, and the weights on a thread of its own."""

    def __init__(self, bundle: Path, manifest: Manifest) -> None:
        """Raises `BundleError` if a file is missing, has another size, or was changed.

        Whether the weights were changed is what `wait` says.
        """
        manifest.verify_files(bundle, contents=manifest.files.keys() - {WEIGHTS_NAME})
        self._error: BaseException | None = None
        # A daemon, so that a program that ends at once does not read the weights to their end.
        self._thread = threading.Thread(target=self._read, args=(bundle, manifest), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits until the weights are read. Raises `BundleError` if they were changed."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _read(self, bundle: Path, manifest: Manifest) -> None:
        try:
            manifest.verify_files(bundle, contents=[WEIGHTS_NAME])
        except BaseException as error:
            self._error = error

"""Watches a link for another export, which the server then swaps to."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from msrec.launch.serving.export_folder import MANIFEST_FILE, export_version
from msrec.launch.serving.scorer import Scorer

POLL_S = 1.0
_LOG = logging.getLogger(__name__)


class Follower:
    """Thread that loads the export that a link leads to, whenever it is another one.

    A link that leads to no export is ignored until it does.

    Args:
        link: to an export.
        version: of the export that is served.
        swap: called with each other export after it was loaded.
        refuse: called with the reason if an export cannot be loaded; it is not tried again.
    """

    def __init__(
        self,
        link: Path,
        version: str,
        swap: Callable[[Scorer], None],
        refuse: Callable[[str], None],
    ) -> None:
        self._link, self._version = link, version
        self._swap, self._refuse = swap, refuse
        self._seen: object = None
        self._stopped = threading.Event()
        # A daemon, so that the server need not wait for an export to be loaded when it stops.
        self._thread = threading.Thread(target=self._run, name="msrec-follow", daemon=True)

    def start(self) -> None:
        """Starts to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread soon."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(POLL_S):
            try:
                self._check()
            except Exception as error:  # noqa: BLE001 - whatever is wrong, the old export stays
                _LOG.warning("the export %s stays: %s", self._version, error)
                self._refuse(str(error))

    def _check(self) -> None:
        # The link is followed once, so that all files are of one export.
        folder = self._link.resolve()
        try:
            file = (folder / MANIFEST_FILE).stat()
        except FileNotFoundError:
            return
        found = (folder, file.st_ino, file.st_mtime_ns)
        if found == self._seen:
            return
        self._seen = found
        if export_version(folder) == self._version:
            return
        scorer = Scorer(folder)
        self._version = scorer.version
        self._swap(scorer)
        _LOG.info("serving %s, version %s", folder, scorer.version)

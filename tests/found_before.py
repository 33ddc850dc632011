"""What takes minutes and follows from sources and a compiler alone is found again only once one of these changes.

``RECORD=1 pytest tests/csrc/test_resources.py`` records what was found in tests/found_before.json.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pixelcnn_fast.fingerprint import fingerprint

RECORD = Path(__file__).with_suffix(".json")


@contextmanager
def found_before(what: str, *made_of: object) -> Iterator[bool]:
    """A context of the test, which passed when it was recorded, if it gives True: with the same ``made_of``, as
    ``fingerprint`` tells them apart. Files count by their content."""
    parts = [part.read_bytes() if isinstance(part, Path) else part for part in made_of]
    recorded, now = json.loads(RECORD.read_text()) if RECORD.exists() else {}, fingerprint(*parts)
    if recorded.get(what) == now:
        yield True
        return
    if what in recorded and not os.environ.get("RECORD"):
        warnings.warn(f"{what}: compiled anew, as something changed. After a commit: RECORD=1", stacklevel=3)
    yield False
    if os.environ.get("RECORD"):  # it has passed
        recorded[what] = now
        RECORD.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n")

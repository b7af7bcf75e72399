"""The sky wing: from seeded patches to small scales on HEALPix pixels, and to brightness."""

from __future__ import annotations

import contextlib
from pathlib import Path


def _forget_stale_code(folder: Path) -> None:
    """Remove compiled code that is older than any source.

    numba looks at the file of the function that it has compiled, and not at those of the functions
    that this one calls: after an edit or an update of one of these it would run the old one.
    """
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    for index in folder.glob("__pycache__/*.nbi"):
        # Another process may do the same; a folder may be read-only, and then nobody edits it.
        with contextlib.suppress(OSError):
            if index.stat().st_mtime < newest:
                index.unlink()


_forget_stale_code(Path(__file__).parent)

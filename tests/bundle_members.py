"""What a bundle holds."""

from __future__ import annotations

import tarfile
from pathlib import Path


def members(path: Path) -> dict[str, bytes]:
    """What a bundle holds."""
    with tarfile.open(path) as archive:
        found = {}
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
        return found

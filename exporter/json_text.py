"""JSON from outside: whatever it holds, the only error is a ValueError."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """
    Read one JSON document.

    Raises:
        ValueError: It is none, or it is nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None

"""JSON from outside: whatever it holds, the only error is a ValueError."""

from __future__ import annotations

import json
from typing import Any

from vllm_opsctl.exporter.limits import MAX_NESTING


def read_json(text: str | bytes) -> Any:
    """
    Read JSON.

    Raises:
        ValueError: It is none, or nested too deeply.

    >>> read_json('{"a": [1]}')
    {'a': [1]}
    """
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_NESTING} deep") from None
    level, depth = [data], 0
    while level:
        if depth > MAX_NESTING:
            raise ValueError(f"nested more than {MAX_NESTING} deep")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        level, depth = inner, depth + 1
    return data

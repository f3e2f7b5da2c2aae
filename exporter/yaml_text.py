"""YAML that comes with the package: read by libyaml, ten times as fast, where PyYAML was built with it."""

from __future__ import annotations

from typing import Any

import yaml

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(text: str) -> Any:
    """
    Read one document.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader either way

"""YAML of the package and of builds, by libyaml where PyYAML has it: ten times as fast."""

from __future__ import annotations

from typing import Any

import yaml

try:
    from yaml import CSafeDumper as Dumper
    from yaml import CSafeLoader as _Loader
except ImportError:
    from yaml import SafeDumper as Dumper  # type: ignore[assignment]
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

__all__ = ["Dumper", "read_yaml"]


def read_yaml(text: str) -> Any:
    """
    Read one document.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, Loader=_Loader)

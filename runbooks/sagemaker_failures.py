"""What SageMaker's sentences about failures mean: the data of ``sagemaker_failures.yaml``, compiled."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib.resources import files

from vllm_opsctl.exporter.yaml_text import read_yaml

CAPACITY = "capacity"

OTHER = "other"
"""A reason that is none of the known kinds."""


@functools.cache
def _patterns() -> Mapping[str, re.Pattern[str]]:
    text = files("vllm_opsctl.runbooks").joinpath("sagemaker_failures.yaml").read_text("utf-8")
    return {
        kind: re.compile(entry["pattern"], re.IGNORECASE) for kind, entry in read_yaml(text).items()
    }


def kind_of(reason: str) -> str:
    """
    The kind of a failure.

    Args:
        reason: FailureReason or StatusMessage.

    >>> kind_of("The primary container for production variant v did not pass the ping health check.")
    'ping'
    """
    return next((kind for kind, known in _patterns().items() if known.search(reason)), OTHER)

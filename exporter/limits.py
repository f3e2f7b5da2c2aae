"""
Bounds on what comes from outside, by name.

What is beyond one of them is refused, or cut and reported under the bound's name
(``opsctl_target_left_out``, the verdict's "Not seen"). docs/security.md lists them.
"""

from __future__ import annotations

from typing import Final

MAX_SERIES: Final = 50_000
"""Catalogued series read of one page: 100 engines of vLLM 0.32 expose about 40,000."""

MAX_ENGINES: Final = 256
"""Engines (model and index) read of one page, and remembered of one target."""

MAX_LABELS: Final = 128
"""Labels of one series; cache_config_info of vLLM 0.32 has 38."""

MAX_LABEL_CHARS: Final = 8192
"""One label's value: the adapters of a full lora_requests_info fit."""

MAX_MODEL_CHARS: Final = 256
"""A model's served name."""

MAX_NESTING: Final = 64
"""Lists and objects within each other, in JSON and YAML."""

MAX_YAML_NODES: Final = 200_000
"""Nodes of one YAML document with its aliases resolved: 20,000 targets of ten keys."""

MAX_CONFIG_BYTES: Final = 4 * 2**20
"""opsctl.yaml."""

MAX_KEY_BYTES: Final = 16 * 2**10
"""A file that holds one API key."""

MAX_MESSAGE_BYTES: Final = 2**20
"""A page as it arrived (--alarm); SNS sends 256 KiB at most."""

MAX_RECORDING_BYTES: Final = 2**30
"""A recording, unpacked."""

MAX_LINE_BYTES: Final = 32 * 2**20
"""One line of a recording: a page of 16 MiB, escaped."""

MAX_PROBLEMS: Final = 20
"""Mistakes of one configuration that are shown; the others are counted."""

MAX_RUNBOOK_BYTES: Final = 2**20
"""One failure mode of a runbook folder; the largest of ours has 6 KiB."""

MAX_CONDITION_CHARS: Final = 4096
"""One condition (CEL) of a failure mode; the longest of ours has 250."""

MAX_VERDICT_BYTES: Final = 64 * 2**20
"""A verdict as JSON; one of 200 replicas has 4 MiB."""

MAX_BUILT_BYTES: Final = 64 * 2**20
"""A file that an earlier build wrote."""

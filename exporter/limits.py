"""
Bounds on what comes from outside, by name.

What is beyond one of them is refused, or cut and reported (``opsctl_target_left_out``, the verdict's
"Not seen"). docs/limits.md is made of this file.
"""

from __future__ import annotations

from typing import Final

# -- Metrics pages -----------------------------------------------------------------------------------

MAX_PAGE_BYTES: Final = 16 * 2**20
"""A metrics page: 32 engines' pages with every connector stay below 4 MiB."""

MAX_SERIES: Final = 50_000
"""Catalogued series read of one page: 100 engines of vLLM 0.32 expose about 40,000."""

MAX_ENGINES: Final = 256
"""Engines (model and index) read of one page."""

MAX_SERIES_CHARS: Final = 16 * 2**10
"""A series' name and labels: those of cache_config_info and of a full lora_requests_info fit."""

MAX_LABELS: Final = 128
"""Labels of one series; cache_config_info of vLLM 0.32 has 38."""

MAX_NAME_CHARS: Final = 256
"""A model's served name, an adapter's, a finish reason's."""

MAX_SPLIT_VALUES: Final = 1024
"""Values of a label that splits a concept, such as an adapter's name, of one engine."""

MAX_VALUE: Final = 1e18
"""A sample's value, either sign: bytes, tokens and seconds of a fleet's whole life stay below."""

# -- The sidecar's memory and door -------------------------------------------------------------------

MAX_REMEMBERED: Final = 512
"""Engines, and models of an objective, remembered of one target; those unseen the longest go first."""

MAX_CONNECTIONS: Final = 512
"""Of clients to the sidecar."""

MAX_CONNECTIONS_OF_ONE_PEER: Final = 64
"""Of one client's address to the sidecar."""

MAX_REQUEST_HEADER_BYTES: Final = 16 * 2**10
"""What a client may send before its request is complete."""

MAX_REQUEST_BODY_BYTES: Final = 1024
"""The sidecar takes nothing; a body that is declared larger is refused before it is read."""

# -- Tap pages ---------------------------------------------------------------------------------------

MAX_TAP_PAGES: Final = 256
"""Tap pages read of one folder, the newest ones: a page an engine and API process."""

MAX_TAP_ENTRIES: Final = 10_000
"""Files of any kind looked at in a folder of tap pages."""

# -- Recordings and what a sidecar answers -----------------------------------------------------------

MAX_RECORDING_BYTES: Final = 2**30
"""A recording, unpacked."""

MAX_LINE_BYTES: Final = 32 * 2**20
"""One line of a recording: a page of 16 MiB, escaped."""

MAX_LINES: Final = 2_000_000
"""Lines of a recording, empty ones included."""

MAX_OBSERVATIONS: Final = 1_000_000
"""Observations of a recording: 500 targets for half an hour, each seen twice a second."""

MAX_RECORDED_TARGETS: Final = 5000
"""Targets of one recording: each is diagnosed."""

MAX_TEXT_CHARS: Final = 8192
"""One text of an observation, such as an error's detail."""

MAX_JSON_NODES: Final = 100_000
"""Values of one field of an observation: /v1/models of 20,000 adapters."""

MAX_JSON_BRACKETS: Final = 1_000_000
"""Opening brackets of one line of a recording, those of a page's series included."""

# -- Files and messages that you give ----------------------------------------------------------------

MAX_CONFIG_BYTES: Final = 4 * 2**20
"""opsctl.yaml."""

MAX_YAML_NODES: Final = 200_000
"""Nodes of one YAML document with its aliases resolved: 20,000 targets of ten keys."""

MAX_NESTING: Final = 64
"""Lists and objects within each other, in JSON and YAML."""

MAX_MISTAKES: Final = 20
"""Mistakes of one configuration that are shown; the others are counted."""

MAX_KEY_BYTES: Final = 16 * 2**10
"""A file that holds one API key."""

MAX_RUNBOOK_BYTES: Final = 2**20
"""One file of a folder of runbooks; the shipped ones stay below 10 KiB."""

MAX_RUNBOOK_FILES: Final = 1000
"""Files of one folder of runbooks."""

MAX_CONDITION_CHARS: Final = 4096
"""One condition (CEL) of a failure mode; the longest of ours has 250."""

MAX_MESSAGE_BYTES: Final = 2**20
"""A page as it arrived (--alarm); SNS sends 256 KiB at most."""

MAX_VERDICT_BYTES: Final = 64 * 2**20
"""A verdict as JSON; one of 200 replicas has 4 MiB."""

MAX_BUILT_BYTES: Final = 64 * 2**20
"""A file that an earlier build wrote."""

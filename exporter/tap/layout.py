"""
The binary layout of a tap page, version 1: what stands at which offset.

Little-endian, cells of 64 bits, fixed size. Behind a fixed header a directory (JSON) names every
cell, so that a reader finds its way on pages of newer and older writers; ``docs/tap-page.md`` is
generated from this module. Nothing here is configurable: two processes have to agree on it.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

MAGIC = b"OPSCTLTP"
VERSION = 1
PAGE_SIZE = 256 * 1024
SUFFIX = ".tap"

# -- header --------------------------------------------------------------------------------------

HEADER_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("magic", "8s", "`OPSCTLTP`"),
    ("version", "I", "layout version; a reader refuses one that it does not know"),
    ("page_size", "I", "bytes of the file"),
    ("sequence", "Q", "sequence lock: odd while the writer is within an update"),
    ("pid", "Q", "process that writes"),
    ("started_ticks", "Q", "its start in clock ticks since boot (field 22 of /proc/PID/stat)"),
    ("started", "d", "its start, Unix seconds"),
    ("created", "d", "creation of the page, Unix seconds"),
    ("touched", "d", "newest update, Unix seconds; at least every VLLM_LOG_STATS_INTERVAL"),
    ("state", "I", "1 live, 2 closed in order, 3 the tap gave up (its process goes on)"),
    ("engine", "I", "engine index (data parallel rank)"),
    ("api_rank", "I", "which of the server's API processes writes"),
    ("api_count", "I", "how many of them there are"),
    ("server_pid", "Q", "process that the API processes share: their parent, or the writer itself"),
    ("server_ticks", "Q", "its start, clock ticks since boot"),
    ("directory_offset", "I", "where the directory begins"),
    ("directory_size", "I", "bytes of it"),
    ("facts_offset", "I", "where the facts begin"),
    ("facts_size", "I", "bytes of them"),
    (
        "untold",
        "Q",
        "bit n is set: this vLLM does not tell the n-th counter (from 0), its 0 says nothing",
    ),
)
"""Name, struct code and meaning, in the order in which they stand, without padding between."""

HEADER = struct.Struct("<" + "".join(code for _, code, _ in HEADER_FIELDS))
HEADER_OFFSETS = {
    name: struct.calcsize("<" + "".join(code for _, code, _ in HEADER_FIELDS[:index]))
    for index, (name, _, _) in enumerate(HEADER_FIELDS)
}

LIVE, CLOSED, GAVE_UP = 1, 2, 3

DIRECTORY_OFFSET = 256
DIRECTORY_CAPACITY = 8192 - DIRECTORY_OFFSET
FACTS_OFFSET = 8192
FACTS_CAPACITY = 4096

WHOLE_FACTS = ("max_model_len", "max_num_seqs", "max_loras")
"""Facts that readers take for whole numbers: of another type they refuse the page."""

MAX_FACT = 2**53
PORTS = range(2**16)

# -- counters and gauges -------------------------------------------------------------------------

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition", "other")
"""vllm/v1/engine/__init__.py, FinishReason, 0.33.0; what a later release adds is ``other``."""

REJECTIONS = ("max_num_queued_reqs", "max_num_queued_tokens", "other")
"""vllm/v1/metrics/loggers.py, ADMISSION_REASONS, 0.32.0."""

COUNTERS = (
    *("records", "scheduler_records", "steps", "step_tokens"),
    *("prompt_tokens", "generation_tokens", "cached_prompt_tokens", "external_prompt_tokens"),
    *("preemptions", "corrupted_requests"),
    *("prefix_queries", "prefix_hits", "external_prefix_queries", "external_prefix_hits"),
    *("mm_queries", "mm_hits"),
    *("spec_drafts", "spec_draft_tokens", "spec_accepted_tokens"),
    *(f"finished_{reason}" for reason in FINISH_REASONS),
    *(f"rejected_{reason}" for reason in REJECTIONS),
    *("fanout_requests", "fanout_choices", "computed_at_finish"),
    *("corrected_times", "adapters_left_out"),
)
"""
Cumulative since the page was created, unsigned 64-bit. ``corrected_times`` are below 0 (counted as 0)
or longer than the process lives (left out): vLLM subtracts time stamps that may not be set.
"""

GAUGES = (
    *("running", "waiting", "deferred", "kv_cache_usage"),
    *("awake", "sleep_level", "scheduled_at", "recorded_at"),
)
"""Newest values, 64-bit floats. ``waiting`` is without ``deferred``; the last two are Unix seconds."""

COUNTERS_OFFSET = FACTS_OFFSET + FACTS_CAPACITY
GAUGES_OFFSET = COUNTERS_OFFSET + 8 * len(COUNTERS)

NO_VALUE = math.nan
"""A gauge that this vLLM does not tell."""

# -- histograms ----------------------------------------------------------------------------------

SUBDIVISIONS = 46
"""Linear buckets per octave: a bucket is at most 1/46 = 2.2 % of its lower bound wide."""


@dataclass(frozen=True, slots=True)
class Scale:
    """
    The buckets of one kind of histogram, log-linear as HdrHistogram's.

    Args:
        lowest_exponent: Values below ``2**lowest_exponent`` share the first bucket.
        octaves: How many doublings there are; what lies beyond shares the last bucket.
        unit: Of the values.
    """

    lowest_exponent: int
    octaves: int
    unit: str

    @property
    def buckets(self) -> int:
        """How many there are: one below, the octaves', one beyond."""
        return self.octaves * SUBDIVISIONS + 2

    def lower(self, index: int) -> float:
        """Lowest value of a bucket."""
        if index <= 0:
            return 0.0
        octave, part = divmod(index - 1, SUBDIVISIONS)
        return math.ldexp(1.0 + part / SUBDIVISIONS, self.lowest_exponent + octave)

    def upper(self, index: int) -> float:
        """Values of a bucket are below this."""
        return self.lower(index + 1) if index < self.buckets - 1 else math.inf

    def index(self, value: float) -> int:
        """The bucket of a value; anything that is not above 0 is in the first."""
        if not value > 0.0:
            return 0
        mantissa, exponent = math.frexp(value)
        octave = exponent - 1 - self.lowest_exponent
        if octave < 0:
            return 0
        if octave >= self.octaves:
            return self.buckets - 1
        return 1 + octave * SUBDIVISIONS + int((mantissa - 0.5) * (2 * SUBDIVISIONS))


SECONDS = Scale(lowest_exponent=-13, octaves=24, unit="seconds")
"""0.12 ms to 34 minutes."""

TOKENS = Scale(lowest_exponent=0, octaves=20, unit="tokens")
"""1 to 1,048,576; exact below 64."""

HISTOGRAMS: tuple[tuple[str, Scale, str], ...] = (
    ("ttft", SECONDS, "time to first token, of every request that got one"),
    ("ttft_hit", SECONDS, "TTFT of finished requests with a prefix-cache hit (returning users)"),
    ("ttft_miss", SECONDS, "TTFT of finished requests without one"),
    ("itl", SECONDS, "inter-token latency"),
    ("e2e", SECONDS, "end-to-end latency of finished requests"),
    ("queue", SECONDS, "time in the scheduler's queue, of finished requests"),
    ("prefill", SECONDS, "from scheduled to first token, of finished requests"),
    ("decode", SECONDS, "from first to last token, of finished requests"),
    ("tpot", SECONDS, "mean time per output token of a finished request"),
    ("prompt_length", TOKENS, "prompt tokens of finished requests"),
    ("output_length", TOKENS, "generated tokens of finished requests"),
    ("cached_length", TOKENS, "prompt tokens out of the prefix cache, of finished requests"),
    ("max_tokens", TOKENS, "max_tokens that finished requests asked for"),
)
"""Name, buckets and meaning. Each is two cells, sum and largest value, and then its buckets."""

HISTOGRAM_HEAD = 2


def _histogram_offsets() -> dict[str, int]:
    offsets, offset = {}, GAUGES_OFFSET + 8 * len(GAUGES)
    for name, scale, _ in HISTOGRAMS:
        offsets[name] = offset
        offset += 8 * (HISTOGRAM_HEAD + scale.buckets)
    offsets[""] = offset
    return offsets


_OFFSETS = _histogram_offsets()
HISTOGRAM_OFFSETS = {name: offset for name, offset in _OFFSETS.items() if name}

# -- adapters ------------------------------------------------------------------------------------

ADAPTERS = 48
ADAPTER_NAME_BYTES = 48
ADAPTER = struct.Struct(f"<{ADAPTER_NAME_BYTES}sII")
"""Name (UTF-8, zeros behind), requests running, requests waiting; an empty name ends the table."""
ADAPTERS_OFFSET = _OFFSETS[""]

# -- ring ----------------------------------------------------------------------------------------

SLOTS = 900
"""A quarter of an hour of seconds."""

SLOT_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("second", "Q", "Unix second; the slot's index is this modulo the number of slots"),
    ("scheduled", "I", "updates within the second that came with scheduler statistics"),
    ("steps", "I", "engine steps with output"),
    ("running", "I", "requests running at the second's last update"),
    ("running_max", "I", "most of them"),
    ("waiting", "I", "requests waiting, deferred ones included, at the last update"),
    ("waiting_max", "I", "most of them"),
    ("deferred", "I", "requests deferred at the last update"),
    ("step_tokens", "I", "tokens computed"),
    ("prompt_tokens", "I", "prompt tokens of requests that got their first token"),
    ("generation_tokens", "I", "generated tokens"),
    ("prefix_queries", "I", "tokens looked up in the prefix cache"),
    ("prefix_hits", "I", "tokens found there"),
    ("preemptions", "I", "preemptions"),
    ("rejections", "I", "requests that admission control refused"),
    ("finished", "I", "requests finished, for whatever reason"),
    ("finished_abort", "I", "of these, aborted"),
    ("finished_error", "I", "of these, failed"),
    ("finished_length", "I", "of these, at their length limit"),
    ("finished_prompt_tokens", "I", "prompt tokens of the finished"),
    ("finished_output_tokens", "I", "generated tokens of the finished"),
    ("finished_cached_tokens", "I", "cached prompt tokens of the finished"),
    ("ttft", "I", "first tokens"),
    ("itl", "I", "inter-token latencies"),
    ("kv_cache_usage", "f", "KV-cache usage at the last update"),
    ("kv_cache_usage_max", "f", "highest"),
    ("ttft_sum", "f", "seconds"),
    ("ttft_max", "f", "seconds"),
    ("itl_sum", "f", "seconds"),
    ("itl_max", "f", "seconds"),
    ("e2e_sum", "f", "seconds, of the finished, as all that follow"),
    ("e2e_max", "f", "seconds"),
    ("queue_sum", "f", "seconds"),
    ("queue_max", "f", "seconds"),
    ("prefill_sum", "f", "seconds"),
    ("decode_sum", "f", "seconds"),
)
"""Name, struct code and meaning; counts first, floats behind. Sums and peaks are over the second."""

SLOT = struct.Struct("<" + "".join(code for _, code, _ in SLOT_FIELDS))
RING_OFFSET = -(-(ADAPTERS_OFFSET + ADAPTERS * ADAPTER.size) // 64) * 64
USED = RING_OFFSET + SLOTS * SLOT.size

assert USED <= PAGE_SIZE, f"the page's sections need {USED} bytes"
assert HEADER.size <= DIRECTORY_OFFSET


def directory() -> dict[str, Any]:
    """What stands where, as it is written on every page."""
    scales = {
        scale.unit: {
            "lowest_exponent": scale.lowest_exponent,
            "octaves": scale.octaves,
            "subdivisions": SUBDIVISIONS,
        }
        for scale in (SECONDS, TOKENS)
    }
    return {
        "counters": {"offset": COUNTERS_OFFSET, "names": COUNTERS},
        "gauges": {"offset": GAUGES_OFFSET, "names": GAUGES},
        "scales": scales,
        "histograms": {
            name: {"offset": HISTOGRAM_OFFSETS[name], "scale": scale.unit}
            for name, scale, _ in HISTOGRAMS
        },
        "adapters": {
            "offset": ADAPTERS_OFFSET,
            "count": ADAPTERS,
            "name_bytes": ADAPTER_NAME_BYTES,
        },
        "ring": {
            "offset": RING_OFFSET,
            "count": SLOTS,
            "stride": SLOT.size,
            "fields": [[name, code] for name, code, _ in SLOT_FIELDS],
        },
    }


def directory_bytes() -> bytes:
    """The directory as it stands on the page."""
    text = json.dumps(directory(), separators=(",", ":")).encode()
    assert len(text) <= DIRECTORY_CAPACITY, f"the directory needs {len(text)} bytes"
    return text

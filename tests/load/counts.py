"""What the clients of a load saw: the truth that others are compared with."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["ok", "refused", "hung_up", "timed_out", "cut_off", "broken"]
"""How a request ended, as its client saw it.

``ok``: usage and the end mark came. ``refused``: a status other than 200. ``hung_up``,
``timed_out``: the client closed, as its phase says. ``cut_off``: it was in flight when the load was
told to end. ``broken``: the connection failed, or the stream ended without its end.
"""


@dataclass
class Tally:
    """What the clients of one phase, or of all of them, saw; requests count where they were sent.

    ``sent == ok + refused + hung_up + timed_out + cut_off + broken`` holds after the load's end.
    """

    sent: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    """Requests by `Outcome`."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Responses by HTTP status; a request without a response is in none."""
    first_tokens: int = 0
    """Requests that received at least one chunk of text."""
    first_token_prompt_tokens: int = 0
    """Prompt tokens of those requests."""
    prompt_tokens: int = 0
    """Sum of ``usage.prompt_tokens`` of finished requests."""
    completion_tokens: int = 0
    """Sum of ``usage.completion_tokens`` of finished requests."""
    ttft_s: list[float] = field(default_factory=list)
    """From the call until the first chunk, each request that got one."""
    e2e_s: list[float] = field(default_factory=list)
    """From the call until the end of the stream, finished requests only."""
    gap_p50_s: float = math.nan
    """Between chunks of a stream; a lagging client gets several tokens in one chunk."""
    gap_p95_s: float = math.nan
    gap_max_s: float = math.nan

    def outcome(self, name: Outcome) -> int:
        """Return how many requests ended that way."""
        return self.outcomes.get(name, 0)


@dataclass
class Summary:
    """The whole load: per phase, in total, and whether anything stood still."""

    phases: dict[str, Tally]
    total: Tally
    started: dict[str, float]
    """Phase name to Unix time; ``drain`` and ``end`` are in it too."""
    longest_round_trip_s: float
    """Of ``GET /version`` (HTTP and the client, without the engine) during the load, from when it was due:
    while the whole machine stands still, nothing is sent either."""

    @classmethod
    def from_json(cls, text: str) -> "Summary":
        """Read what the load process wrote."""
        raw: dict[str, Any] = json.loads(text)
        raw["phases"] = {name: Tally(**tally) for name, tally in raw["phases"].items()}
        raw["total"] = Tally(**raw["total"])
        return cls(**raw)

    def to_json(self) -> str:
        """Write it down for `from_json`; NaN stands for no sample."""
        return json.dumps(asdict(self), indent=1)


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that `share` of all are at or below; NaN where there is none."""
    if not samples:
        return math.nan
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]

"""What a stretch of load looks like, and the prompts it sends.

Prompts are lists of token ids, not text: their length is exact, and neither side tokenises.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

PromptKind = Literal["shared_prefix", "nonce_head", "unique"]
"""How prompts of a phase relate to each other.

``shared_prefix``: the same head, then `TAIL_TOKENS` of its own - hits the prefix cache.
``nonce_head``: `NONCE_TOKENS` of its own, then that same head and a tail - never hits.
``unique``: nothing shared.
"""

NONCE_TOKENS = 4
TAIL_TOKENS = 16

_ORDINARY_IDS = range(3, 240)
"""Token ids that every byte-level vocabulary has, the end mark not among them."""


@dataclass(frozen=True)
class Phase:
    """Load of one kind for a while: open arrivals or a fixed number of clients.

    Exactly one of `arrivals_per_s` and `concurrency` is given; `arrivals_per_s` 0 is an idle phase.
    """

    name: str
    duration_s: float
    prompt_tokens: int = 64
    output_tokens: int = 64
    arrivals_per_s: float | None = None
    """Requests per second at random (Poisson) times, whether or not earlier ones have ended."""
    concurrency: int | None = None
    """Clients that each send the next request when the last one has ended."""
    prompt_kind: PromptKind = "unique"
    text: str = ""
    """Names the shared head: phases with the same text and length share it, others do not."""
    hang_up_after_tokens: int | None = None
    """Clients close the stream after this many chunks; vLLM sends one per token unless they lag."""
    client_timeout_s: float | None = None
    """Clients give up after this many seconds, first token or not."""
    oversized_every: int | None = None
    """Every n-th prompt has `oversized_tokens` instead of `prompt_tokens`."""
    oversized_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse a phase that says neither or both of how requests arrive."""
        if (self.arrivals_per_s is None) == (self.concurrency is None):
            raise ValueError(f"phase {self.name}: give arrivals_per_s or concurrency")


def prompts(phase: Phase) -> Iterator[list[int]]:
    """Yield the prompts of a phase, the same ones in every run, except for what has to be new.

    Heads depend on `Phase.text` only. The tokens that make a prompt its own are truly random, so
    that a second run against the same server does not find the first one's blocks in its cache.
    """
    own = random.SystemRandom()
    named = random.Random(phase.text)  # noqa: S311 - the same text in every run, no secret
    head = _tokens(named, phase.prompt_tokens)
    count = 0
    while True:
        count += 1
        length = phase.prompt_tokens
        if phase.oversized_every is not None and count % phase.oversized_every == 0:
            yield _tokens(own, phase.oversized_tokens)
        elif phase.prompt_kind == "unique":
            yield _tokens(own, length)
        elif phase.prompt_kind == "shared_prefix":
            yield head[: length - TAIL_TOKENS] + _tokens(own, TAIL_TOKENS)
        else:
            shared = head[: length - TAIL_TOKENS - NONCE_TOKENS]
            yield _tokens(own, NONCE_TOKENS) + shared + _tokens(own, TAIL_TOKENS)


def _tokens(source: random.Random, count: int) -> list[int]:
    """Return `count` ordinary token ids."""
    return source.choices(_ORDINARY_IDS, k=count)

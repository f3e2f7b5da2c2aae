"""What a stretch of load looks like, and the prompts it sends.

Prompts are lists of token ids, not text: their length is exact, and neither side tokenises.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

PromptKind = Literal["shared_prefix", "nonce_head", "unique"]
"""How prompts of a phase relate to each other.

``shared_prefix``: one of `Phase.heads` heads, then `TAIL_TOKENS` of its own - hits the prefix cache.
``nonce_head``: `NONCE_TOKENS` of its own, then that same head and a tail - never hits.
``unique``: nothing shared.
"""

NONCE_TOKENS = 4
TAIL_TOKENS = 16

ORDINARY_IDS = range(3, 240)
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
    burst: int = 1
    """Requests that arrive at once; `arrivals_per_s` counts requests, not bursts."""
    heads: int = 1
    """Heads that ``shared_prefix`` prompts draw from: the working set of the prefix cache."""
    models: Sequence[str] = ()
    """Names that requests ask for in turn; an empty one is the served model."""
    n: int = 1
    """Answers that each request asks for."""
    salted: bool = False
    """Each request has a ``cache_salt`` of its own."""
    stop_ids: int = 0
    """Token ids that end an answer; random weights draw evenly, so every one shortens the answers."""
    greedy: bool = False
    """Temperature 0: random weights then repeat themselves, which an n-gram speculator foresees."""
    logprobs: int | None = None
    """Alternatives that come with each token."""
    schema_every: int | None = None
    """Every n-th request wants JSON of a schema that nobody asked for before."""
    schema_depth: int = 3
    """Nesting of those schemas; the grammar grows exponentially with it."""
    tokenize_kib: int | None = None
    """Requests are ``POST /tokenize`` with a text of this size, instead of completions."""
    output_least: int | None = None
    """Answers are of any length from this to `output_tokens`, so that clients do not march in step."""

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
    heads = [_tokens(named, phase.prompt_tokens) for _ in range(phase.heads)]
    count = 0
    while True:
        count += 1
        length = phase.prompt_tokens
        if phase.oversized_every is not None and count % phase.oversized_every == 0:
            yield _tokens(own, phase.oversized_tokens)
        elif phase.prompt_kind == "unique":
            yield _tokens(own, length)
        elif phase.prompt_kind == "shared_prefix":
            yield own.choice(heads)[: length - TAIL_TOKENS] + _tokens(own, TAIL_TOKENS)
        else:
            shared = own.choice(heads)[: length - TAIL_TOKENS - NONCE_TOKENS]
            yield _tokens(own, NONCE_TOKENS) + shared + _tokens(own, TAIL_TOKENS)


def _tokens(source: random.Random, count: int) -> list[int]:
    """Return `count` ordinary token ids."""
    return source.choices(ORDINARY_IDS, k=count)

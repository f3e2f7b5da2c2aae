"""What a phase's requests say: JSON bodies of completions, or of ``/tokenize``."""

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

from load.phase import ORDINARY_IDS, Phase, prompts

Body = dict[str, Any]

_WORDS = "the quick brown fox jumps over the lazy dog while the engine counts every token "


def bodies(phase: Phase, model: str) -> Iterator[Body]:
    """Yield the bodies of a phase's requests, one after the other.

    Args:
        phase: the load.
        model: the served model's name.
    """
    if phase.tokenize_kib is not None:
        text = (_WORDS * (phase.tokenize_kib * 1024 // len(_WORDS) + 1))[
            : phase.tokenize_kib * 1024
        ]
        while True:
            yield {"model": model, "prompt": text}
    own = random.SystemRandom()
    for number, prompt in zip(count(1), prompts(phase), strict=False):
        name = phase.models[number % len(phase.models)] if phase.models else ""
        body: Body = {
            "model": name or model,
            "prompt": prompt,
            "max_tokens": (
                phase.output_tokens
                if phase.output_least is None
                else own.randint(phase.output_least, phase.output_tokens)
            ),
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if phase.n > 1:
            body["n"] = phase.n
        if phase.salted:
            body["cache_salt"] = f"{own.getrandbits(64):x}"
        if phase.stop_ids:
            body["stop_token_ids"] = list(ORDINARY_IDS[: phase.stop_ids])
        if phase.greedy:
            body["temperature"] = 0
        if phase.logprobs is not None:
            body["logprobs"] = phase.logprobs
        if phase.schema_every is not None and number % phase.schema_every == 0:
            schema = _schema(own, phase.schema_depth)
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema},
            }
        yield body


def _schema(own: random.Random, depth: int) -> Body:
    """Return a JSON schema with names that nobody used before, nested `depth` deep."""
    if depth == 0:
        name = f"{own.getrandbits(48):012x}"
        return {"type": "string", "enum": [f"{name}{i}" for i in range(8)]}
    fields = {f"k{own.getrandbits(48):012x}": _schema(own, depth - 1) for _ in range(4)}
    closed = {"type": "object", "properties": fields, "additionalProperties": False}
    return {"oneOf": [{**closed, "required": list(fields)}, {"type": "array", "items": closed}]}

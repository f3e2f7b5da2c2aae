"""A small, deterministic serving run: the numbers that are fed to vLLM's metric loggers.

A toy scheduler (four slots, one token per running request and step) serves a fixed list of
requests.  It yields one `Step` per scheduler step.  `totals` adds the steps up by concept;
these sums are what a page made from the same steps must show.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

SLOTS = 4
KV_BLOCKS = 64
BLOCK_SIZE = 16
PREEMPT_AT = (60, 131)
LORAS = ("adapter-a", "adapter-b", "adapter-c")


@dataclass
class Request:
    arrival: float
    prompt: int
    cached: int
    output: int
    reason: str
    lora: str
    scheduled: float | None = None
    first_token: float = 0.0
    last_token: float = 0.0
    generated: int = 0
    preemptions: int = 0


@dataclass
class Finished:
    reason: str
    e2e: float
    queue: float
    prefill: float
    decode: float
    inference: float
    prompt: int
    cached: int
    generated: int
    preemptions: int

    @property
    def tpot(self) -> float:
        return self.decode / (self.generated - 1) if self.generated > 1 else 0.0


@dataclass
class Step:
    running: int
    waiting: int
    deferred: int
    kv_usage: float
    preemptions: int = 0
    admitted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    running_loras: list[str] = field(default_factory=list)
    waiting_loras: list[str] = field(default_factory=list)


def _requests(rng: random.Random, count: int, reasons: tuple[str, ...]) -> list[Request]:
    requests, arrival = [], 0.0
    for index in range(count):
        arrival += rng.uniform(0.05, 0.9)
        prompt = rng.randrange(2, 12) * BLOCK_SIZE + rng.randrange(BLOCK_SIZE)
        cached = BLOCK_SIZE * rng.randrange(0, prompt // BLOCK_SIZE) if index % 3 else 0
        requests.append(
            Request(
                arrival=arrival,
                prompt=prompt,
                cached=cached,
                output=rng.randrange(8, 60),
                reason=reasons[index % len(reasons)],
                lora=LORAS[index % len(LORAS)],
            )
        )
    return requests


def simulate(
    seed: int, steps: int = 180, reasons: tuple[str, ...] = ("stop", "stop", "length", "abort")
) -> list[Step]:
    """Serve requests for `steps` scheduler steps; some still run and wait at the end."""
    rng = random.Random(seed)  # noqa: S311
    coming = deque(_requests(rng, 60, reasons))
    waiting: deque[Request] = deque()
    running: list[Request] = []
    now, result = 0.0, []
    for number in range(steps):
        while coming and coming[0].arrival <= now:
            waiting.append(coming.popleft())
        step = Step(running=0, waiting=0, deferred=0, kv_usage=0.0)
        if number in PREEMPT_AT and running:
            victim = running.pop()
            victim.preemptions += 1
            step.preemptions += 1
            waiting.appendleft(victim)
        elif waiting and len(running) < SLOTS:
            request = waiting.popleft()
            running.append(request)
            if request.scheduled is None:
                request.scheduled = now
                step.admitted += 1
                step.prompt_tokens += request.prompt
                step.cached_tokens += request.cached
        now += rng.uniform(0.02, 0.06) + 0.001 * (step.prompt_tokens - step.cached_tokens)
        for request in list(running):
            if request.generated == 0:
                request.first_token = now
                step.ttft.append(now - request.arrival)
            else:
                step.itl.append(now - request.last_token)
            request.last_token = now
            request.generated += 1
            step.generation_tokens += 1
            if request.generated == request.output:
                running.remove(request)
                step.finished.append(_finish(request, now))
        tokens = sum(r.prompt + r.generated for r in running)
        step.kv_usage = round(tokens / (KV_BLOCKS * BLOCK_SIZE), 4)
        step.running, step.waiting = len(running), len(waiting)
        step.deferred = min(1, len(waiting))
        step.running_loras = sorted({r.lora for r in running})
        step.waiting_loras = sorted({r.lora for r in waiting})
        if step.generation_tokens:
            result.append(step)
    return result


def _finish(request: Request, now: float) -> Finished:
    assert request.scheduled is not None
    return Finished(
        reason=request.reason,
        e2e=now - request.arrival,
        queue=request.scheduled - request.arrival,
        prefill=request.first_token - request.scheduled,
        decode=request.last_token - request.first_token,
        inference=request.last_token - request.scheduled,
        prompt=request.prompt,
        cached=request.cached,
        generated=request.generated,
        preemptions=request.preemptions,
    )


def spread(values: list[float]) -> dict[str, float]:
    return {"count": len(values), "sum": round(sum(values), 6)}


def totals(steps: list[Step]) -> dict[str, Any]:
    """Every concept of the run, whatever the vLLM version; a page maker picks what it fed."""
    done = [f for step in steps for f in step.finished]
    queries, hits = sum(s.prompt_tokens for s in steps), sum(s.cached_tokens for s in steps)
    last = steps[-1]
    return {
        "running": last.running,
        "waiting": last.waiting,
        "waiting_capacity": last.waiting - last.deferred,
        "waiting_deferred": last.deferred,
        "kv_usage": last.kv_usage,
        "prompt_tokens": queries,
        "generation_tokens": sum(s.generation_tokens for s in steps),
        "prefix_queries": queries,
        "prefix_hits": hits,
        "prefix_hit_ratio": round(hits / queries, 4),
        "preemptions": sum(s.preemptions for s in steps),
        "finished": dict(sorted(Counter(f.reason for f in done).items())),
        "ttft": spread([x for s in steps for x in s.ttft]),
        "itl": spread([x for s in steps for x in s.itl]),
        "e2e": spread([f.e2e for f in done]),
        "queue": spread([f.queue for f in done]),
        "prefill": spread([f.prefill for f in done]),
        "decode": spread([f.decode for f in done]),
        "inference": spread([f.inference for f in done]),
        "tpot": spread([f.tpot for f in done]),
        "steps": len(steps),
    }


def busy_run(
    number: int, reasons: tuple[str, ...] = ("stop", "stop", "length", "abort")
) -> list[Step]:
    """The `number`-th run that ends with work left both in the slots and in the queue."""
    seed = number * 1000
    while True:
        steps = simulate(seed, reasons=reasons)
        if steps[-1].running and steps[-1].waiting > 1 and totals(steps)["preemptions"]:
            return steps
        seed += 1

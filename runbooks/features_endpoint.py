"""Features of the endpoint and of progress: answers, health, stalls, HTTP errors."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from vllm_opsctl.exporter.engine import EngineSample
from vllm_opsctl.exporter.window import Window, longest_flat
from vllm_opsctl.runbooks.evidence import MIN_REFERENCE_REQUESTS, Evidence
from vllm_opsctl.runbooks.features import feature, quotient
from vllm_opsctl.runbooks.platform import measured

# -- the window itself ---------------------------------------------------------------------------


@feature("window.seconds", "seconds", "Length of the window under test, since the onset.")
def _(e: Evidence) -> float | None:
    return e.window.seconds


@feature("window.asked_seconds", "seconds", "Length of the window that was asked for.")
def _(e: Evidence) -> float | None:
    return e.asked.seconds if e.asked.samples else None


@feature("window.samples", "count", "Pages read in the window under test.")
def _(e: Evidence) -> float | None:
    return float(len(e.window.samples))


@feature("reference.kind", "text", "What the comparison with before rests on.")
def _(e: Evidence) -> str | None:
    return e.reference.source if e.reference else None


# -- endpoint ------------------------------------------------------------------------------------


@feature("endpoint.answers", "bool", "The newest attempt to read the metrics page succeeded.")
def _answers(e: Evidence) -> bool | None:
    last = e.last("metrics", "error")
    return last.kind == "metrics" if last else None


@feature("endpoint.answered_before", "bool", "The target answered earlier, before it stopped.")
def _(e: Evidence) -> bool | None:
    return e.earlier_answer


@feature("endpoint.error", "text", "Why the newest attempt to read the page failed.")
def _(e: Evidence) -> str | None:
    last = e.last("metrics", "error")
    return str(last.data.get("reason")) if last and last.kind == "error" else None


@feature("endpoint.failures", "count", "Failed attempts to read the page since the last good one.")
def _(e: Evidence) -> float | None:
    attempts = [o.kind for o in e.observations if o.kind in ("metrics", "error")]
    in_a_row = itertools.takewhile(lambda kind: kind == "error", reversed(attempts))
    return float(len(list(in_a_row))) if attempts else None


@feature(
    "endpoint.down_seconds",
    "seconds",
    "How long the page could not be read, up to the newest attempt.",
)
def _(e: Evidence) -> float | None:
    if _answers(e) is not False:
        return None
    attempts = [o for o in e.observations if o.kind in ("metrics", "error")]
    good = [o.t for o in attempts if o.kind == "metrics"]
    return attempts[-1].t - (good[-1] if good else attempts[0].t)


@feature("endpoint.failed_share", "ratio", "Share of the attempts to read the page that failed.")
def _(e: Evidence) -> float | None:
    attempts = [o for o in e.observations if o.kind in ("metrics", "error")]
    return sum(o.kind == "error" for o in attempts) / len(attempts) if attempts else None


@feature("endpoint.read_seconds", "seconds", "Slowest read of the metrics page.")
def _(e: Evidence) -> float | None:
    return max(
        (
            float(o.data["seconds"])
            for o in e.observations
            if o.kind == "metrics" and "seconds" in o.data
        ),
        default=None,
    )


@feature("health.seconds", "seconds", "Slowest GET /health.")
def _(e: Evidence) -> float | None:
    return max(
        (
            float(o.data["seconds"])
            for o in e.observations
            if o.kind == "health" and o.data.get("seconds")
        ),
        default=None,
    )


@feature("health.status", "count", "HTTP status of the newest GET /health that was answered.")
def _(e: Evidence) -> float | None:
    answered = [o for o in e.observations if o.kind == "health" and o.data.get("status")]
    return float(answered[-1].data["status"]) if answered else None


# -- progress ------------------------------------------------------------------------------------


STAYED_SAMPLES = 3
"""Clients that are there in so many pages running have come to stay."""

KEEP_ALIVE_S = 6.0
"""vLLM closes a connection without a request after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE)."""

MIN_STALL_S = 5.0
"""FAILURE_MODES, engine-hung: with a canary's confirmation 5 s without progress are enough."""


@dataclass(frozen=True, slots=True)
class _Stall:
    """The longest run of pages that show no progress."""

    seconds: float
    samples: tuple[EngineSample, ...]
    ongoing: bool


def _stall(e: Evidence) -> _Stall | None:
    window: Window = e.asked.since_reset()
    if len(window.samples) < 2:
        return None
    first, last, seconds = longest_flat([s.heartbeat for s in window.samples], window.steps_s)
    ongoing = last == len(window.samples) - 1
    return _Stall(seconds, window.samples[first : last + 1], ongoing and seconds > 0)


def has_progress(window: Window) -> bool:
    """Whether the engine did anything within a window."""
    beats = [s.heartbeat for s in window.samples]
    return len(set(beats)) > 1


def stalled_since(e: Evidence) -> float | None:
    """Unix seconds since which the engine has done nothing; None while it makes progress."""
    stall = _stall(e)
    return stall.samples[0].t if stall is not None and stall.ongoing else None


def trouble_since(e: Evidence) -> float | None:
    """Unix seconds of the last sign of life before an outage, a stall or a restart."""
    if _answers(e) is False:
        good = [o.t for o in e.observations if o.kind == "metrics"]
        return good[-1] if good else None
    stall = _stall(e)
    if stall is not None and stall.seconds >= MIN_STALL_S:
        return stall.samples[0].t
    return e.restarts[-1][0] if e.restarts else None


@feature(
    "progress.stalled_seconds",
    "seconds",
    "Longest time in which no step, token or request was done.",
)
def _(e: Evidence) -> float | None:
    stall = _stall(e)
    return stall.seconds if stall else None


@feature("progress.stall_ongoing", "bool", "The engine makes no progress up to the newest page.")
def _(e: Evidence) -> bool | None:
    stall = _stall(e)
    return stall.ongoing if stall else None


@feature(
    "progress.stall_clients", "count", "Connections that came and stayed while nothing was done."
)
def _(e: Evidence) -> float | None:
    stall = _stall(e)
    if stall is None or stall.seconds == 0:
        return None
    start, end = stall.samples[0].t, stall.samples[-1].t
    if any(has_progress(sibling.between(start, end)) for sibling in e.siblings):
        # connections belong to the page: they may be those of the engine that works
        return None
    fds = [
        (s.t, s.gauges["process_open_fds"]) for s in stall.samples if "process_open_fds" in s.gauges
    ]
    # who has just connected has not waited yet, and who only keeps a connection is sent away
    stayed = [count for t, count in fds if t >= end - KEEP_ALIVE_S]
    stayed = (
        stayed if len(stayed) >= STAYED_SAMPLES else [count for _, count in fds[-STAYED_SAMPLES:]]
    )
    return max(0.0, min(stayed) - fds[0][1]) if len(fds) > STAYED_SAMPLES else None


@feature(
    "progress.stall_running",
    "count",
    "Requests in the running batch all the while nothing was done.",
)
def _(e: Evidence) -> float | None:
    stall = _stall(e)
    if stall is None or stall.seconds == 0:
        return None
    return min(
        (s.gauges["requests_running"] for s in stall.samples if "requests_running" in s.gauges),
        default=None,
    )


@feature(
    "progress.stall_waiting_growth",
    "count",
    "Requests by which the queue grew while nothing was done.",
)
def _(e: Evidence) -> float | None:
    stall = _stall(e)
    if stall is None or stall.seconds == 0:
        return None
    waiting = Window(stall.samples).gauge("requests_waiting")
    return waiting[-1] - waiting[0] if waiting else None


@feature("progress.stall_cpu", "cores", "CPU that the API server used while nothing was done.")
def _(e: Evidence) -> float | None:
    stall = _stall(e)
    return Window(stall.samples).rate("process_cpu_seconds") if stall else None


@feature(
    "engine.awake",
    "bool",
    "The engine says that it is awake (it says so too while RL tooling pauses it).",
)
def _(e: Evidence) -> bool | None:
    awake = e.asked.gauge_last("awake")
    return awake >= 1 if awake is not None else None


@feature("progress.stall_asleep", "bool", "The engine said that it slept while nothing was done.")
def _(e: Evidence) -> bool | None:
    stall = _stall(e)
    if stall is None:
        return None
    awake = Window(stall.samples).gauge("awake")
    return min(awake) < 1 if awake else None


# -- HTTP ----------------------------------------------------------------------------------------


@feature("http.requests", "count", "Requests to the inference routes that were answered.")
def _http(e: Evidence) -> float | None:
    counted = e.window.delta("http_requests")
    # SageMaker counts the same answers from outside of the container
    return counted if counted is not None else measured(e, "invocations")


@feature("http.client_errors", "count", "Requests that were answered with a 4xx status.")
def _client_errors(e: Evidence) -> float | None:
    counted = _of_status(e.window, "4xx")
    return counted if counted is not None else measured(e, "client_errors")


@feature("http.client_error_ratio", "ratio", "Share of the requests answered with a 4xx status.")
def _(e: Evidence) -> float | None:
    return quotient(_client_errors(e), _http(e))


@feature("http.server_errors", "count", "Requests that were answered with a 5xx status.")
def _server_errors(e: Evidence) -> float | None:
    counted = _of_status(e.window, "5xx")
    return counted if counted is not None else measured(e, "server_errors")


@feature("http.server_error_ratio", "ratio", "Share of the requests answered with a 5xx status.")
def _(e: Evidence) -> float | None:
    return quotient(_server_errors(e), _http(e))


@feature(
    "http.rejected_tokens", "count", "Estimated prompt length of the requests answered with 4xx."
)
def _(e: Evidence) -> float | None:
    """What the rejected requests carried: the bytes that accepted requests do not explain."""
    errors = _client_errors(e)
    bodies = e.window.histogram("http_request_bytes")
    accepted_tokens = e.window.delta("prompt_tokens")
    bytes_per_token = _bytes_per_token(e.history) or USUAL_BYTES_PER_TOKEN
    if not errors or bodies is None or accepted_tokens is None:
        return None
    rejected_bytes = bodies.sum - accepted_tokens * bytes_per_token
    return max(0.0, rejected_bytes / errors / bytes_per_token)


USUAL_BYTES_PER_TOKEN = 4.0
"""English text, where no stretch without rejections tells; it is off by half at most."""


def _bytes_per_token(history: Window) -> float | None:
    """Body bytes per prompt token, from the intervals in which every request was accepted."""
    total_bytes, total_tokens, requests = 0.0, 0.0, 0.0
    for index in range(1, len(history.samples)):
        pair = history.slice(index - 1, index + 1)
        bodies, tokens = pair.histogram("http_request_bytes"), pair.delta("prompt_tokens")
        if bodies is not None and tokens is not None and not _of_status(pair, "4xx"):
            total_bytes += bodies.sum
            total_tokens += tokens
            requests += bodies.count
    return quotient(total_bytes, total_tokens) if requests >= MIN_REFERENCE_REQUESTS else None


@feature(
    "model.max_length", "count", "Longest context that the server accepts (max_model_len), tokens."
)
def _(e: Evidence) -> float | None:
    models = e.api_facts.get("models")
    if isinstance(models, dict):
        entries = [entry for entry in models.get("data", []) if isinstance(entry, dict)]
        lengths = [entry.get("max_model_len") for entry in entries]
        known = [float(length) for length in lengths if isinstance(length, int | float)]
        if known:
            return max(known)
    facts = e.newest.facts if e.newest else {}
    try:
        return float(facts["kv_cache_size_tokens"]) / float(facts["kv_cache_max_concurrency"])
    except (KeyError, ValueError, ZeroDivisionError):
        return None


def _of_status(window: Window, status: str) -> float | None:
    """Requests of one status class; a class without a series had none, if others were counted."""
    if window.delta("http_requests") is None:
        return None
    # the series appears with its first request, so its first value is an increase too
    seen = [s.counters.get(f"http_requests{{{status}}}", 0.0) for s in window.samples]
    return sum(new - old if new >= old else new for old, new in itertools.pairwise(seen))

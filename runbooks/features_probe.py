"""Features of active checks: each of them sends something, and says so."""

from __future__ import annotations

from vllm_opsctl.exporter.observation import NOT_SENT, Observation
from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import feature, quotient

NO_CANARY_REASONS = frozenset(f"http-{status}" for status in (401, 403, 404, 405, 501))
"""Answers that say nothing of the engine: no such route or model here, or no permission."""


@feature("probe.ok", "bool", "The canary completion produced its token.")
def _(e: Evidence) -> bool | None:
    probe = canary_of(e)
    if probe is None or probe.data.get("reason") in NO_CANARY_REASONS:
        return None
    return bool(probe.data.get("ok"))


@feature("probe.timed_out", "bool", "The canary completion got no answer in time.")
def _(e: Evidence) -> bool | None:
    probe = canary_of(e)
    return probe.data.get("reason") == "timeout" if probe else None


@feature("probe.seconds", "seconds", "How long the canary completion took.")
def _(e: Evidence) -> float | None:
    probe = canary_of(e)
    return float(probe.data["seconds"]) if probe and "seconds" in probe.data else None


CANARY_IS_NEWS_S = 15.0
"""An answer older than this says nothing of an engine that has stood still since."""


def canary_of(e: Evidence) -> Observation | None:
    """The newest canary completion, as long as it is news."""
    probe = _probe(e, "canary")
    newest = e.observations[-1].t if e.observations else 0.0
    return probe if probe is not None and probe.t >= newest - CANARY_IS_NEWS_S else None


def not_sent(e: Evidence) -> str | None:
    """Why no canary was sent, where that was decided."""
    probe = _probe(e, NOT_SENT)
    return str(probe.data.get("detail")) if probe is not None else None


def _probe(e: Evidence, name: str) -> Observation | None:
    """The newest probe of a name; those without one are canaries (recordings of opsctl 0.1)."""
    found = [
        o for o in e.observations if o.kind == "probe" and o.data.get("name", "canary") == name
    ]
    return found[-1] if found else None


def _number(e: Evidence, name: str, field: str) -> float | None:
    probe = _probe(e, name)
    value = probe.data.get(field) if probe else None
    return float(value) if isinstance(value, int | float) else None


# -- prefix cache: the same prompt twice ---------------------------------------------------------


@feature("probe.cold_seconds", "seconds", "TTFT of a long prompt that nobody sent before.")
def _cold(e: Evidence) -> float | None:
    return _number(e, "repeat", "cold_seconds")


@feature("probe.repeat_seconds", "seconds", "TTFT of that same prompt sent again.")
def _repeated(e: Evidence) -> float | None:
    return _number(e, "repeat", "repeat_seconds")


@feature(
    "probe.repeat_hits", "bool", "The page counted prefix-cache hits when the prompt came again."
)
def _(e: Evidence) -> bool | None:
    probe = _probe(e, "repeat")
    hit = probe.data.get("hit") if probe else None
    return hit if isinstance(hit, bool) else None


@feature("probe.repeat_ratio", "ratio", "TTFT of the repeated prompt against the new one.")
def _(e: Evidence) -> float | None:
    return quotient(_repeated(e), _cold(e))


# -- front end, models, state --------------------------------------------------------------------


@feature("probe.tokenize_seconds", "seconds", "POST /tokenize of one word: the front end alone.")
def _(e: Evidence) -> float | None:
    return _number(e, "tokenize", "seconds")


@feature("probe.tokenize_timed_out", "bool", "POST /tokenize got no answer in time.")
def _(e: Evidence) -> bool | None:
    probe = _probe(e, "tokenize")
    return probe.data.get("reason") == "timeout" if probe else None


@feature("probe.sleeping", "bool", "GET /is_sleeping says so (development mode only).")
def _(e: Evidence) -> bool | None:
    return _state(e, "is_sleeping")


@feature("probe.paused", "bool", "GET /is_paused says so (development mode only).")
def _(e: Evidence) -> bool | None:
    return _state(e, "is_paused")


def _state(e: Evidence, name: str) -> bool | None:
    value = e.api_facts.get(name)
    return value if isinstance(value, bool) else None


@feature(
    "probe.in_flight", "count", "Requests in the server as GET /load says, the front end's too."
)
def _(e: Evidence) -> float | None:
    value = e.api_facts.get("server_load")
    # without --enable-server-load-tracking it is 0 for ever, and 0 says nothing
    return float(value) if isinstance(value, int | float) and value > 0 else None


@feature("probe.missing_models", "text", "Configured models and adapters that /v1/models lacks.")
def _(e: Evidence) -> str | None:
    wanted = e.api_facts.get("expected_models")
    models = e.api_facts.get("models")
    if not isinstance(wanted, list) or not wanted or not isinstance(models, dict):
        return None
    served = {str(model.get("id")) for model in models.get("data", [])}
    return ", ".join(sorted(set(map(str, wanted)) - served))


@feature(
    "config.max_num_seqs", "count", "max_num_seqs as GET /server_info says (development mode)."
)
def _(e: Evidence) -> float | None:
    value = e.api_facts.get("max_num_seqs")
    return float(value) if isinstance(value, int | float) else None

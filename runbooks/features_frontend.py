"""Features of the front end: the API server's process, tokenisation, multimodal input, sockets."""

from __future__ import annotations

from vllm_opsctl.exporter.window import Window
from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import feature, quotient
from vllm_opsctl.runbooks.features_latency import MIN_EVENTS


def _residual(window: Window) -> float | None:
    """
    Mean time of a finished request outside the engine: rendering, tokenising, hand-over, event loop.

    All three histograms observe the same requests, at their finish (FAILURE_MODES, derived facts).
    """
    e2e = window.histogram("request_e2e_seconds")
    queue, inference = (
        window.mean("request_queue_seconds"),
        window.mean("request_inference_seconds"),
    )
    if e2e is None or e2e.count < MIN_EVENTS or e2e.mean is None:
        return None
    if queue is None or inference is None:
        return None
    # the two clocks differ by microseconds
    return max(0.0, e2e.mean - queue - inference)


@feature("frontend.seconds", "seconds", "Mean time of a finished request outside the engine.")
def _frontend(e: Evidence) -> float | None:
    return _residual(e.window)


@feature("frontend.seconds_before", "seconds", "Mean time of a request outside the engine, before.")
def _frontend_before(e: Evidence) -> float | None:
    if e.reference is None or e.reference.window is None:
        return None
    return _residual(e.reference.window)


@feature("frontend.vs_before", "factor", "Time outside the engine against before.")
def _(e: Evidence) -> float | None:
    now, before = _frontend(e), _frontend_before(e)
    # below a millisecond the difference of two means is noise
    return quotient(now, max(before, 0.001)) if before is not None else None


@feature("frontend.share", "ratio", "Share of the end-to-end latency outside the engine.")
def _(e: Evidence) -> float | None:
    return quotient(_frontend(e), e.window.mean("request_e2e_seconds"))


@feature("api.cpu", "cores", "CPU that the API server's process uses (not the engine's).")
def _(e: Evidence) -> float | None:
    return e.window.rate("process_cpu_seconds")


@feature("api.cpu_before", "cores", "CPU that the API server's process used before.")
def _(e: Evidence) -> float | None:
    return e.reference.rate("process_cpu_seconds") if e.reference else None


@feature(
    "api.connections_growth", "count", "Open files of the API server, last against first sample."
)
def _(e: Evidence) -> float | None:
    fds = e.window.gauge("process_open_fds")
    return fds[-1] - fds[0] if len(fds) >= 2 else None


@feature("api.unseen_clients", "count", "Connections that came and are in no queue of the engine.")
def _(e: Evidence) -> float | None:
    fds, waiting = e.window.gauge("process_open_fds"), e.window.gauge("requests_waiting")
    running = e.window.gauge("requests_running")
    if len(fds) < 2 or not waiting or not running:
        return None
    in_engine = waiting[-1] - waiting[0] + running[-1] - running[0]
    return fds[-1] - fds[0] - in_engine


@feature("api.open_files_ratio", "ratio", "Open files and sockets against the process's limit.")
def _(e: Evidence) -> float | None:
    return quotient(e.asked.gauge_max("process_open_fds"), e.history.gauge_last("process_max_fds"))


@feature(
    "api.process_metrics_lost",
    "bool",
    "The page lost its process metrics: reading them wants a free file.",
)
def _(e: Evidence) -> bool | None:
    if e.newest is None or not e.history.gauge("process_open_fds"):
        return None
    return "process_open_fds" not in e.newest.gauges


@feature("mm.queried_items", "count", "Multimodal items looked up in the processor cache.")
def _(e: Evidence) -> float | None:
    return e.window.delta("mm_cache_queried_items")


@feature("mm.hit_ratio", "ratio", "Hit ratio of the multimodal processor cache.")
def _mm(e: Evidence) -> float | None:
    return quotient(e.window.delta("mm_cache_hit_items"), e.window.delta("mm_cache_queried_items"))


@feature("mm.hit_ratio_before", "ratio", "Hit ratio of the multimodal processor cache before.")
def _mm_before(e: Evidence) -> float | None:
    if e.reference is None:
        return None
    return quotient(
        e.reference.total("mm_cache_hit_items"), e.reference.total("mm_cache_queried_items")
    )


@feature("mm.hit_vs_before", "factor", "Multimodal hit ratio against before.")
def _(e: Evidence) -> float | None:
    return quotient(_mm(e), _mm_before(e))

"""Features that no page has: log lines and the host, where somebody gave access to them."""

from __future__ import annotations

from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import Feature, Value, feature, register
from vllm_opsctl.runbooks.log_patterns import log_patterns

# -- log -----------------------------------------------------------------------------------------


def _log_feature(id_: str, meaning: str) -> Feature:
    def compute(e: Evidence) -> Value | None:
        found = [o.data.get("counts", {}) for o in e.observations if o.kind == "log"]
        return sum(float(counts.get(id_, 0)) for counts in found) if found else None

    return Feature(f"log.{id_}", "count", meaning, compute)


for _id, _pattern in log_patterns().items():
    register(_log_feature(_id, f"Log lines of this kind: {_pattern.meaning}"))


# -- host ----------------------------------------------------------------------------------------


def _host(e: Evidence, name: str) -> object:
    last = e.last("host")
    return last.data.get(name) if last else None


@feature("host.engine_process", "bool", "A vLLM engine process lives on this host.")
def _(e: Evidence) -> bool | None:
    value = _host(e, "engine_process")
    return value if isinstance(value, bool) else None


@feature("host.engine_stopped", "bool", "An engine process on this host is stopped (state T).")
def _(e: Evidence) -> bool | None:
    value = _host(e, "engine_stopped")
    return value if isinstance(value, bool) else None


@feature("host.oom_kills", "count", "Lines of the OOM killer in the kernel's log.")
def _(e: Evidence) -> float | None:
    return _count(e, "oom_kills")


@feature("host.xid_errors", "count", "Xid lines (GPU faults) in the kernel's log.")
def _(e: Evidence) -> float | None:
    return _count(e, "xid_errors")


@feature("host.gpu_throttled", "bool", "A GPU is slowed down by heat or power (nvidia-smi).")
def _(e: Evidence) -> bool | None:
    value = _host(e, "gpu_throttled")
    return value if isinstance(value, bool) else None


@feature("host.load_per_core", "factor", "Load average of the last minute per core of the host.")
def _(e: Evidence) -> float | None:
    return _count(e, "load_per_core")


def _count(e: Evidence, name: str) -> float | None:
    value = _host(e, name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

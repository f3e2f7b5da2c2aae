"""
Active checks of one endpoint: health, version, models, and one small generated token as a canary.

All of them are bounded and never repeated. /health says little (a frozen engine's server answers it
in a millisecond); the canary is the only proof that the engine generates.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from vllm_opsctl.errors import SourceError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.sources.http import Answer, get, new_session

CANARY_TIMEOUT_S = 10.0
"""FAILURE_MODES, engine-hung: a canary with 1 token and a timeout of 5 to 10 s is decisive."""

_FACTS_TIMEOUT_S = 3.0
_MAX_BYTES = 2**20


class Prober:
    """Asks one target the questions that /metrics does not answer."""

    def __init__(
        self,
        target: Target,
        *,
        api_key: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.target = target
        self._clock = clock
        self._session = new_session(api_key)

    def _ask(self, path: str, timeout_s: float, **kwargs: Any) -> Answer:
        url = self.target.url + path
        return get(self._session, url, timeout_s=timeout_s, max_bytes=_MAX_BYTES, **kwargs)

    def health(self) -> Observation:
        """GET /health: status and how long it took."""
        try:
            answer = self._ask("/health", _FACTS_TIMEOUT_S)
        except SourceError as problem:
            return self._observation("health", status=None, reason=problem.reason)
        return self._observation("health", status=answer.status, seconds=round(answer.seconds, 4))

    def facts(self) -> Observation:
        """GET /version and GET /v1/models; what does not answer is left out."""
        facts: dict[str, Any] = {}
        version = self._json("/version")
        if isinstance(version, dict) and isinstance(version.get("version"), str):
            facts["version"] = version["version"]
        models = self._json("/v1/models")
        if isinstance(models, dict) and isinstance(models.get("data"), list):
            facts["models"] = {
                "data": [_model_facts(m) for m in models["data"] if isinstance(m, dict)]
            }
        return self._observation("facts", **facts)

    def canary(self, model: str) -> Observation:
        """POST /v1/completions for one token of a fixed prompt."""
        started = time.monotonic()
        body = {"model": model, "prompt": "opsctl canary", "max_tokens": 1, "temperature": 0}
        try:
            answer = self._ask("/v1/completions", CANARY_TIMEOUT_S, method="POST", json=body)
        except SourceError as problem:
            seconds = round(time.monotonic() - started, 4)
            return self._observation(
                "probe", ok=False, seconds=seconds, reason=problem.reason, detail=problem.detail
            )
        ok = answer.status == 200
        body_text = " ".join(answer.body[:200].decode(errors="replace").split())
        detail = None if ok else f"HTTP {answer.status}: {body_text}"
        return self._observation(
            "probe",
            ok=ok,
            seconds=round(answer.seconds, 4),
            reason=None if ok else f"http-{answer.status}",
            detail=detail,
        )

    def _json(self, path: str) -> object:
        try:
            answer = self._ask(path, _FACTS_TIMEOUT_S)
            return json.loads(answer.body) if answer.status == 200 else None
        except (SourceError, ValueError):
            return None

    def _observation(self, kind: Any, **data: Any) -> Observation:
        return Observation(self._clock(), self.target.name, kind, data)

    def close(self) -> None:
        """Drop the connection."""
        self._session.close()


def _model_facts(model: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one entry of /v1/models; no permissions, no paths of weights."""
    return {key: model[key] for key in ("id", "max_model_len", "parent") if key in model}


def first_model(facts: Observation) -> str | None:
    """The id of the base model among the facts, for the canary."""
    models = facts.data.get("models", {}).get("data", [])
    base = [m.get("id") for m in models if not m.get("parent")]
    return next((str(id_) for id_ in base if id_), None)

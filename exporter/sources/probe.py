"""
Active checks of one endpoint: health, facts, a canary token, one word tokenised, one prompt twice.

All of them are bounded and never retried. /health says little (a frozen engine's server answers it
in a millisecond); the canary is the only proof that the engine generates.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from vllm_opsctl.errors import SourceError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.json_text import read_json
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.redaction import without_literally, without_secrets
from vllm_opsctl.exporter.sources.http import Answer, get, new_session

CANARY_TIMEOUT_S = 10.0
"""FAILURE_MODES, engine-hung: a canary with 1 token and a timeout of 5 to 10 s is decisive."""

REPEAT_TIMEOUT_S = 10.0

QUICK_CANARY_S = 2.0
"""An engine whose canary took longer is busy or broken; nothing bigger is sent to it."""

REPEAT_WORDS = 200
"""About 4 blocks of 64 to 128 tokens (CAUSAL_GRAPH, P4): long enough to hit, short enough to be cheap."""

FACTS_TIMEOUT_S = 3.0
"""For all facts together: a server whose other routes hang must not keep its page from being read."""

_MAX_BYTES = 2**20

_MAX_MODELS = 1000
"""Models and adapters of which facts are kept."""
_MAX_NUMBER = 1e15
"""No length, limit or load is so large; a recording refuses it."""
_SAID = 200
_SEARCHED = 2**16
"""Characters of an answer that are told, and bytes that are searched for the key before."""


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
        self._secrets = (api_key,) if api_key else ()
        self._session = new_session(api_key, target.ca_file)

    def _ask(self, path: str, timeout_s: float, **kwargs: Any) -> Answer:
        url = self.target.url + path
        return get(self._session, url, timeout_s=timeout_s, max_bytes=_MAX_BYTES, **kwargs)

    def health(self) -> Observation:
        """GET /health: status and how long it took."""
        try:
            answer = self._ask("/health", FACTS_TIMEOUT_S)
        except SourceError as problem:
            return self._observation("health", status=None, reason=problem.reason)
        return self._observation("health", status=answer.status, seconds=round(answer.seconds, 4))

    def facts(self) -> Observation:
        """
        GET what the server says of itself; what does not answer is left out.

        /version and /v1/models always, /load, and in development mode /is_sleeping, /is_paused and
        /server_info; beside them what the configuration expects.
        """
        until = time.monotonic() + FACTS_TIMEOUT_S
        facts: dict[str, Any] = {}
        if self.target.models:
            facts["expected_models"] = list(self.target.models)
        if self.target.max_model_len is not None:
            facts["expected_max_model_len"] = self.target.max_model_len
        version = self._json("/version", until)
        if isinstance(version, dict) and isinstance(version.get("version"), str):
            facts["version"] = plain(version["version"], MAX_NAME_CHARS)
        models = self._json("/v1/models", until)
        if isinstance(models, dict) and isinstance(models.get("data"), list):
            found = [_model_facts(m) for m in models["data"][:_MAX_MODELS] if isinstance(m, dict)]
            facts["models"] = {"data": found}
        load = self._json("/load", until)
        if isinstance(load, dict) and _is_number(load.get("server_load")):
            facts["server_load"] = load["server_load"]
        for name in ("is_sleeping", "is_paused"):
            state = self._json(f"/{name}", until)
            if isinstance(state, dict) and isinstance(state.get(name), bool):
                facts[name] = state[name]
        limit = _max_num_seqs(self._json("/server_info?config_format=json", until))
        if limit is not None:
            facts["max_num_seqs"] = limit
        return self._observation("facts", **facts)

    def tokenize(self, model: str) -> Observation:
        """POST /tokenize of one word: the front end without the engine."""
        started = time.monotonic()
        body = {"model": model, "prompt": "canary"}
        try:
            answer = self._ask("/tokenize", FACTS_TIMEOUT_S, method="POST", json=body)
        except SourceError as problem:
            seconds = round(time.monotonic() - started, 4)
            return self._observation(
                "probe", name="tokenize", ok=False, seconds=seconds, reason=problem.reason
            )
        ok = answer.status == 200
        return self._observation(
            "probe",
            name="tokenize",
            ok=ok,
            reason=None if ok else f"http-{answer.status}",
            # how long a missing route took to say so says nothing
            **({"seconds": round(answer.seconds, 4)} if ok else {}),
        )

    def repeat(self, model: str) -> Observation:
        """POST one new prompt of some hundred tokens twice: does the second one hit the cache?"""
        words = " ".join(str(number) for number in range(REPEAT_WORDS))
        body = {
            "model": model,
            "prompt": f"opsctl {uuid.uuid4().hex} {words}",
            "max_tokens": 1,
            "temperature": 0,
        }
        seconds: list[float] = []
        hit: bool | None = None
        for _ in range(2):
            try:
                answer = self._ask("/v1/completions", REPEAT_TIMEOUT_S, method="POST", json=body)
            except SourceError as problem:
                return self._observation("probe", name="repeat", ok=False, reason=problem.reason)
            if answer.status != 200:
                reason = f"http-{answer.status}"
                return self._observation("probe", name="repeat", ok=False, reason=reason)
            seconds.append(round(answer.seconds, 4))
            hit = _cache_hit(answer.body)
        cold, repeated = seconds
        return self._observation(
            "probe", name="repeat", ok=True, cold_seconds=cold, repeat_seconds=repeated, hit=hit
        )

    def canary(self, model: str) -> Observation:
        """POST /v1/completions for one token of a fixed prompt."""
        started = time.monotonic()
        body = {"model": model, "prompt": "opsctl canary", "max_tokens": 1, "temperature": 0}
        try:
            answer = self._ask("/v1/completions", CANARY_TIMEOUT_S, method="POST", json=body)
        except SourceError as problem:
            seconds = round(time.monotonic() - started, 4)
            return self._observation(
                "probe",
                name="canary",
                ok=False,
                seconds=seconds,
                reason=problem.reason,
                detail=problem.detail,
            )
        if answer.status != 200:
            reason = f"http-{answer.status}"
        elif not _is_completion(answer.body):
            reason = "no-completion"
        else:
            return self._observation(
                "probe", name="canary", ok=True, seconds=round(answer.seconds, 4), reason=None
            )
        what = "" if answer.status != 200 else ", but no completion"
        return self._observation(
            "probe",
            name="canary",
            ok=False,
            seconds=round(answer.seconds, 4),
            reason=reason,
            detail=f"HTTP {answer.status}{what}: {self._said(answer.body)}",
        )

    def _said(self, body: bytes) -> str:
        """The beginning of an answer; what answers may repeat the headers that it was sent."""
        text = without_secrets(body[:_SEARCHED].decode(errors="replace"), self._secrets)
        return plain(" ".join(text.split()), _SAID)

    def _json(self, path: str, until: float) -> object:
        left = until - time.monotonic()
        if left <= 0:
            return None
        try:
            answer = self._ask(path, left)
            body = without_literally(answer.body, self._secrets)
            return read_json(body) if answer.status == 200 else None
        except (SourceError, ValueError):
            return None

    def _observation(self, kind: Any, **data: Any) -> Observation:
        return Observation(self._clock(), self.target.name, kind, data)

    def close(self) -> None:
        """Drop the connection."""
        self._session.close()


def _model_facts(model: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one entry of /v1/models; no permissions, no paths of weights."""
    facts: dict[str, Any] = {}
    for key in ("id", "parent"):
        if key in model and (model[key] is None or isinstance(model[key], str)):
            facts[key] = None if model[key] is None else plain(model[key], MAX_NAME_CHARS)
    length = model.get("max_model_len")
    if "max_model_len" in model and (length is None or _is_number(length)):
        facts["max_model_len"] = length
    return facts


def _is_number(value: object) -> bool:
    """JSON has NaN, and integers without end."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < _MAX_NUMBER  # type: ignore[operator]


def _max_num_seqs(info: object) -> int | None:
    """From /server_info (0.32: vllm_config.scheduler_config.max_num_seqs); nothing else is kept."""
    for name in ("vllm_config", "scheduler_config", "max_num_seqs"):
        info = info.get(name) if isinstance(info, dict) else None
    return info if isinstance(info, int) and _is_number(info) else None


def _is_completion(body: bytes) -> bool:
    """A proxy's page with HTTP 200 is no token."""
    try:
        data = read_json(body)
    except ValueError:
        return False
    return isinstance(data, dict) and isinstance(data.get("choices"), list)


def _cache_hit(body: bytes) -> bool | None:
    """Whether a completion's usage tells of cached tokens (--enable-prompt-tokens-details)."""
    try:
        details = read_json(body)["usage"]["prompt_tokens_details"]
        return bool(details["cached_tokens"]) if details else None
    except (ValueError, KeyError, TypeError):
        return None


def first_model(facts: Observation) -> str | None:
    """The id of the base model among the facts, for the canary."""
    models = facts.data.get("models", {}).get("data", [])
    base = [m.get("id") for m in models if not m.get("parent")]
    return next((str(id_) for id_ in base if id_), None)

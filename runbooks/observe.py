"""Observes live targets for a while: pages at a steady pace, and the active checks once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.config_load import api_key
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.observation import Observation, error, not_sent
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.sources.probe import (
    CANARY_TIMEOUT_S,
    QUICK_CANARY_S,
    Prober,
    first_model,
)
from vllm_opsctl.exporter.sources.scrape import Scraper
from vllm_opsctl.runbooks.host import is_local, look_at_host

log = logging.getLogger(__name__)

READ_TIMEOUT_S = 3.0

GIVE_UP_AFTER = 3
"""Failed reads in a row after which a target that never answered is not waited for."""

_SPREAD_S = 0.5
"""The last target's first read comes no later than this after the first one's."""

_GRACE_S = 2 * READ_TIMEOUT_S

OnObservation = Callable[[Observation], None]


def observe(
    targets: Sequence[Target],
    *,
    for_s: float,
    interval_s: float,
    probe: bool,
    environment: Mapping[str, str],
    on_observation: OnObservation,
    stop: threading.Event,
    at_least: int = 0,
) -> None:
    """
    Observe several targets at once; returns when all are done.

    Their reads are spread, so that many do not come in one burst.

    Args:
        targets: What to look at; one thread each, none delays another.
        for_s: How long to read pages; a little longer where a busy machine is late with ``at_least``.
        interval_s: Time between two reads.
        probe: Send the canary completion.
        environment: For API keys.
        on_observation: Called with each observation, one at a time.
        stop: Set to end early.
        at_least: Pages that are waited for of each target that answers.

    Raises:
        ConfigError: An API key is not where the configuration says.
    """
    lock = threading.Lock()

    def deliver(observation: Observation) -> None:
        shown = {k: v for k, v in observation.data.items() if k not in ("text", "models")}
        log.info("%s: %s %s", observation.target, observation.kind, shown or "")
        with lock:
            on_observation(observation)

    go = threading.Event()

    def thread(
        what: str, names: Sequence[str], delay_s: float, work: Callable[[], None]
    ) -> threading.Thread:
        def run() -> None:
            go.wait()
            stop.wait(delay_s)
            try:
                work()
            except Exception as problem:
                # one target's fault is an error of that target, whatever the others do
                why = plain(f"{type(problem).__name__}: {problem}", MAX_NAME_CHARS)
                log.info("%s: %s", what, why, exc_info=True)
                for name in names:
                    deliver(error(time.time(), name, "internal", why))

        return threading.Thread(target=run, name=what, daemon=True)

    probers: list[threading.Thread] = []
    readers: list[threading.Thread] = []
    for index, target in enumerate(targets):
        key = api_key(target, environment)
        delay_s = min(interval_s, _SPREAD_S) * index / len(targets)
        prober = None
        if probe:
            ask = partial(_ask, target, key, deliver)
            prober = thread(f"probe {target.name}", [target.name], delay_s, ask)
            probers.append(prober)
        read = partial(_read, target, key, for_s, interval_s, at_least, prober, deliver, stop)
        readers.append(thread(f"observe {target.name}", [target.name], delay_s, read))
    local = [target.name for target in targets if is_local(target.url)]
    if probe and local:
        readers.append(thread("host", (), 0.0, partial(_look, local, deliver)))
    for started in (*probers, *readers):
        started.start()
    # not before: whoever starts a thread while others work waits long for each turn
    go.set()
    for reader in readers:
        while reader.is_alive():
            # a plain join would keep Ctrl-C waiting
            reader.join(0.2)


def _read(
    target: Target,
    key: str | None,
    for_s: float,
    interval_s: float,
    at_least: int,
    prober: threading.Thread | None,
    deliver: OnObservation,
    stop: threading.Event,
) -> None:
    scraper = Scraper(target, timeout_s=READ_TIMEOUT_S, api_key=key)
    started = time.monotonic()
    reads, pages, refused = 0, 0, 0
    while not stop.is_set():
        observation = scraper.read()
        deliver(observation)
        reads += 1
        pages += observation.kind == "metrics"
        refused = refused + 1 if observation.kind == "error" else 0
        if not pages and refused >= GIVE_UP_AFTER:
            break
        elapsed = time.monotonic() - started
        longest_s = for_s
        if prober is not None and prober.is_alive():
            longest_s = for_s + CANARY_TIMEOUT_S
        elif 0 < pages < at_least:
            longest_s = for_s + _GRACE_S
        if elapsed >= longest_s:
            break
        stop.wait(max(0.0, reads * interval_s - elapsed))
    if prober is not None and not stop.is_set():
        prober.join(_GRACE_S)
    scraper.close()


def probe_once(target: Target, key: str | None, deliver: OnObservation) -> None:
    """
    What this host says of a target that runs on it, and what the target answers.

    Args:
        target: What to ask.
        key: Its API key.
        deliver: Called with each observation.
    """
    if is_local(target.url):
        _look([target.name], deliver)
    _ask(target, key, deliver)


def _look(targets: Sequence[str], deliver: OnObservation) -> None:
    """One look at this host is all of its targets'."""
    seen = look_at_host(targets[0])
    for target in targets:
        deliver(replace(seen, target=target))


def _ask(target: Target, key: str | None, deliver: OnObservation) -> None:
    """
    Health and facts, then what is sent: the canary, one word to tokenise, one prompt twice.

    A canary that times out speaks against the engine only when the same server answers something
    else from the same place, so it is only sent where /health answers, whatever it says. The prompt
    is only sent where the canary came back quickly. Where no canary can be sent, that is observed.
    """
    prober = Prober(target, api_key=key)
    health = prober.health()
    deliver(health)
    if health.data.get("status") is None:
        why = f"GET /health: {health.data.get('reason')}"
        deliver(not_sent(time.time(), target.name, why))
    else:
        facts = prober.facts()
        deliver(facts)
        model = first_model(facts) or _model_of_page(target, key)
        if model is None:
            why = "neither /v1/models nor the metrics page names a model"
            deliver(not_sent(time.time(), target.name, why))
        else:
            canary = prober.canary(model)
            deliver(canary)
            deliver(prober.tokenize(model))
            if canary.data["ok"] and canary.data["seconds"] < QUICK_CANARY_S:
                deliver(prober.repeat(model))
    prober.close()


def _model_of_page(target: Target, key: str | None) -> str | None:
    """A served name as the metrics page has it: where /v1/models fails, the page may still be there."""
    scraper = Scraper(target, timeout_s=READ_TIMEOUT_S, api_key=key)
    seen = scraper.read()
    scraper.close()
    if seen.kind != "metrics":
        return None
    try:
        page = read_page(seen.text, t=seen.t, target=target.name)
    except BadPage:
        return None
    return page.engines[0].key.model

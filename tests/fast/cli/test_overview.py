"""The sidecar's page for people: verdict and objectives, whatever is in them, and whatever fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html import unescape
from typing import Any

import pytest
from loopback import wait_for
from paths import RECORDINGS
from prometheus_client import CollectorRegistry

from vllm_opsctl.cli.overview import MOST_ANSWERS, Overview, headline_html, verdict_html
from vllm_opsctl.exporter.config import Alarms, Config, Target
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.exporter.server import Application, SidecarView
from vllm_opsctl.exporter.target_state import Snapshot, TargetState
from vllm_opsctl.runbooks.load import Library, shipped_library
from vllm_opsctl.runbooks.on_demand import OUTDATED_S, Look
from vllm_opsctl.runbooks.verdict import FoundCause, Health, TargetVerdict, Verdict

HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>&amp;"
COMMAND = "opsctl diagnose --sidecar http://127.0.0.1:9836"
SECONDS_IN = 45
"""The recording's incident is at its height."""


@dataclass
class Recorded:
    """A sidecar that has watched a recording until some second of it."""

    config: Config
    state: TargetState
    clock: float

    def now(self) -> float:
        return self.clock

    def snapshots(self) -> list[Snapshot]:
        return [self.state.snapshot(self.clock)]

    def observations(
        self, target: str | None, start: float | None, end: float | None
    ) -> Iterator[Observation]:
        return self.state.recorder.read(start, end)


def watched(*, model: str = "tiny", runbook_url: str | None = None) -> Recorded:
    target = Target(name="chat-0", url="http://chat-0:8000")
    config = Config(targets=(target,), alarms=Alarms(runbook_url=runbook_url))
    state = TargetState(target, config.exporter, config.objectives)
    observed = read_recording(RECORDINGS / "kv-preemption-thrash.jsonl.gz")
    end = observed[0].t + SECONDS_IN
    for observation in observed:
        if observation.t > end:
            break
        data = dict(observation.data)
        if observation.kind == "metrics":
            data["text"] = observation.text.replace('="tiny"', f'="{model}"')
        state.record(replace(observation, target="chat-0", data=data))
    return Recorded(config, state, end)


def answer(application: Application, path: str = "/") -> tuple[str, dict[str, str], str]:
    got: list[tuple[str, list[tuple[str, str]]]] = []
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": "GET"}
    body = b"".join(application(environ, lambda status, headers: got.append((status, headers))))
    ((status, headers),) = got
    return status, dict(headers), body.decode()


def page_of(view: SidecarView, library: Callable[[], Library] = shipped_library) -> str:
    """The page once the targets were looked at."""
    application = Application(view, CollectorRegistry(), Overview(library))
    wait_for(lambda: "being looked at" not in answer(application)[2], timeout_s=60, what="the look")
    return answer(application)[2]


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def verdict_on(target: str, health: Health, **more: Any) -> TargetVerdict:
    return TargetVerdict(
        target=target,
        verdict=health,
        summary=more.pop("summary", f"{target} is so"),
        source="sidecar",
        start=940.0,
        end=more.pop("end", 1000.0),
        samples=60,
        **more,
    )


def shown_verdict(*targets: TargetVerdict, now: float = 1010.0) -> str:
    return "".join(verdict_html(Look(Verdict(targets), 1000.0, 0.5), COMMAND, now))


def test_the_first_load_says_that_the_targets_are_being_looked_at() -> None:
    application = Application(watched(), CollectorRegistry(), Overview())

    status, _, html = answer(application)

    assert status == "200 OK"
    assert "being looked at" in html
    assert "burning fast" in html
    assert "tiny / 0" in html


def test_the_page_has_the_root_its_evidence_what_to_do_and_what_to_type() -> None:
    text = text_of(page_of(watched()))

    assert "CRITICAL kv-preemption-thrash on chat-0" in text
    assert re.search(r"Root cause: kv-preemption-thrash \(critical, confidence \d\d %\)", text)
    assert "preemptions per started request" in text
    assert "Do now Lower concurrency at the gateway until preemptions stop." in text
    assert "opsctl diagnose --sidecar http://127.0.0.1:9836 chat-0" in text
    assert "Runbook: opsctl runbook show kv-preemption-thrash" in text


def test_the_page_has_what_burns_and_claims_no_thirty_days() -> None:
    text = text_of(page_of(watched()))

    assert "objectives burning fast : e2e" in text
    assert "slow burns (3x over 24 h and 1x over 72 h) are not judged here" in text
    assert "burning fast e2e ≤ 1.5 s tiny tiny 99 %" in text
    assert "are known, and longer windows are of those" in text
    assert "nobody here knows what is left of the 30 days" in text
    assert "exhausted" not in text
    assert "Without a number: ttft-returning (no data)" in text


def test_colour_is_for_what_is_beyond_the_thresholds_of_alarms() -> None:
    html = page_of(watched())
    rows = dict(re.findall(r'<tr><td class="text">.*?</td><td class="text">([\w-]+).*?(<.*)', html))

    assert 'class="bad"' in rows["e2e"]
    assert 'class="bad"' not in rows["availability"]


def test_a_runbook_on_the_web_is_a_link_and_anything_else_is_text() -> None:
    linked = page_of(watched(runbook_url="https://wiki.internal/runbooks"))
    odd = page_of(watched(runbook_url="javascript:alert(1)//"))

    assert '<a href="https://wiki.internal/runbooks/kv-preemption-thrash">' in linked
    assert 'href="javascript' not in odd


def test_a_hostile_model_name_is_text() -> None:
    html = page_of(watched(model=HOSTILE))

    assert HOSTILE in unescape(html)
    assert "<script" not in html
    assert "<img" not in html


def test_hostile_words_in_a_verdict_are_text() -> None:
    cause = FoundCause(
        id=HOSTILE,
        title=HOSTILE,
        role="root",
        severity=HOSTILE,
        confidence=0.9,
        score=0.9,
        evidence=(),
        engine=HOSTILE,
        runbook=f'https://x/"{HOSTILE}',
    )
    target = verdict_on("chat-0", "critical", summary=HOSTILE, model=HOSTILE, causes=(cause,))
    look = Look(Verdict((target,)), 1000.0, 0.5, None)
    failed = Look(None, 1000.0, 0.5, HOSTILE)

    for html in (
        shown_verdict(target),
        "".join(headline_html(look, ())),
        "".join(verdict_html(failed, COMMAND, 1010.0)),
    ):
        assert "<script" not in html
        assert "<img" not in html
        assert '"<' not in html


def test_a_diagnosis_that_fails_costs_only_itself() -> None:
    def broken() -> Library:
        raise RuntimeError("no library")

    text = text_of(page_of(watched(), broken))

    assert "The diagnosis failed : RuntimeError: no library" in text
    assert "burning fast e2e" in text
    assert "tiny / 0" in text


def test_an_overview_that_fails_costs_only_itself() -> None:
    def broken(view: SidecarView) -> str:
        raise ValueError(HOSTILE)

    status, _, html = answer(Application(watched(), CollectorRegistry(), broken))

    assert status == "200 OK"
    assert "Objectives and verdict are missing" in html
    assert "<img" not in html
    assert "tiny / 0" in html


def test_a_target_that_fell_silent_says_since_when() -> None:
    html = shown_verdict(verdict_on("chat-0", "unknown", end=1000.0), now=1000.0 + 2 * OUTDATED_S)

    assert "nothing newer for" in html
    assert "nothing newer for" not in shown_verdict(verdict_on("chat-0", "unknown"))


def test_targets_with_one_answer_are_one_and_a_crowd_is_bounded() -> None:
    alike = [verdict_on(f"chat-{n}", "healthy", summary="fine") for n in range(50)]
    apart = [verdict_on(f"chat-{n}", "degraded") for n in range(50)]

    assert shown_verdict(*alike).count("<section") == 1
    assert shown_verdict(*apart).count("<section") == MOST_ANSWERS
    assert "and 38 more" in shown_verdict(*apart)


def test_the_headline_counts_a_fleet() -> None:
    look = Look(Verdict((verdict_on("a", "critical"), verdict_on("b", "healthy"))), 1000.0)

    assert "CRITICAL 2 targets: 1 critical, 1 healthy" in text_of("".join(headline_html(look, ())))


def test_the_page_may_load_nothing_and_tells_nobody_where_it_is() -> None:
    _, headers, html = answer(Application(watched(), CollectorRegistry(), Overview()))

    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "style=" not in html
    assert not re.findall(r"(?:src|action)=|https?://(?!127\.0\.0\.1)", html)


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/api/v1/status"])
def test_only_the_page_asks_for_a_verdict(path: str) -> None:
    asked: list[SidecarView] = []

    def overview(view: SidecarView) -> str:
        asked.append(view)
        return ""

    answer(Application(watched(), CollectorRegistry(), overview), path)

    assert not asked

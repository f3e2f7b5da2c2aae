"""The past, read back from a real Prometheus, is what was there: the same features, the same verdict."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import Opsctl
from loopback import serving, wait_for
from parts.inventory import find_part
from parts.prometheus import RealPrometheus, backfill
from paths import RECORDINGS
from ports import reserve_port
from truth import Case, cases

from vllm_opsctl.cli.observing import ENOUGH_PAGES, from_prometheus, wide_enough
from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.observation import Observation, error, metrics
from vllm_opsctl.exporter.sources.prometheus import DOWN, PrometheusSource
from vllm_opsctl.runbooks.diagnosis import diagnose_target
from vllm_opsctl.runbooks.evidence import history_of
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.verdict import TargetVerdict

WITHOUT_ENGINE = "third/metrics-disabled"
"""Nothing on its pages says that it is a vLLM."""

SHOWN = [name for name in cases() if name != WITHOUT_ENGINE]
HEALTHY_S = 11.0
"""Seconds of scrapes before anything is wrong: the overload begins 14 s into its replay, the death later."""


def moment(case: Case) -> float:
    """When on-call asks."""
    return case.incident[1] if case.incident else case.observations[-1].t


def as_scraped(observations: Sequence[Observation]) -> list[Observation]:
    """What a scraper keeps: pages, and that a read failed but not why."""
    return [
        o if o.kind == "metrics" else error(o.t, o.target, DOWN, "")
        for o in observations
        if o.kind in ("metrics", "error")
    ]


def verdict_on(observations: Sequence[Observation], at: float) -> TargetVerdict:
    return diagnose_target(
        observations[0].target, observations, shipped_library(), source="prometheus", at=at
    )


def roots(verdict: TargetVerdict) -> list[str]:
    return [cause.id for cause in verdict.roots]


def every(seconds: float, observations: Sequence[Observation]) -> list[Observation]:
    """What a slower scraper would have seen of it."""
    kept: list[Observation] = []
    for observation in observations:
        if not kept or observation.t - kept[-1].t >= seconds - 0.05:
            kept.append(observation)
    return kept


def rewritten(
    observations: Sequence[Observation], change: Callable[[str], str]
) -> list[Observation]:
    """Pages as a collector would have passed them on."""
    return [
        metrics(o.t, o.target, change(o.text)) if o.kind == "metrics" else o for o in observations
    ]


Backfilled = tuple[Sequence[Observation], Mapping[str, str]]


def special_pasts() -> Iterator[Backfilled]:
    """Recordings under circumstances that a Prometheus brings with it, and their targets' labels."""
    thrash = cases()["kv-preemption-thrash"].observations
    overload = cases()["queue-overload"].observations
    healthy = cases()["baseline"].observations
    yield (
        rewritten(thrash, lambda text: text.replace("vllm:", "ray_vllm_")),
        {"job": "ray", "instance": "ray-0"},
    )
    # the target has labels of the page's names: Prometheus renames those of the page
    clash = re.compile(r"\b(engine|model_name)=")
    yield (
        rewritten(thrash, lambda text: clash.sub(r"exported_\1=", text)),
        {"job": "clash", "instance": "clash-0", "engine": "gpu-box-7", "model_name": "ours"},
    )
    yield every(3, overload), {"job": "slow", "instance": "slow-0"}
    for job in ("blue", "green"):
        yield healthy, {"job": job, "instance": "10.0.0.1:8000", "namespace": "twins"}
    # a replica that is down all the time beside two that serve
    for instance in ("fleet-0", "fleet-1"):
        yield healthy, {"job": "fleet", "instance": instance}
    yield (
        [error(o.t, o.target, "refused", "") for o in healthy],
        {"job": "fleet", "instance": "fleet-2"},
    )
    yield (
        every(1, [error(o.t, o.target, "refused", "") for o in healthy]),
        {"job": "all-down", "instance": "all-down-0"},
    )


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """A Prometheus that holds every recording, each as an instance of its name."""
    binary, promtool = find_part("prometheus"), find_part("promtool")
    if binary is None or promtool is None:
        yield None
        return
    server = RealPrometheus(binary, tmp_path_factory.mktemp("prometheus"), reserve_port())
    for name in SHOWN:
        observations = cases()[name].observations
        backfill(promtool, observations, server.data, job="recorded", instance=name)
    for seen, labels in special_pasts():
        backfill(promtool, seen, server.data, **labels)
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def prometheus(past: str | None, part: Callable[[str], Path]) -> str:
    """Its URL."""
    part("prometheus")
    part("promtool")
    assert past is not None
    return past


def read(url: str, match: str, at: float, window_s: float = 60.0) -> list[Observation]:
    source = PrometheusSource(url, match)
    return source.observations(end=at, **history_of(at - window_s))


@pytest.mark.parametrize("name", SHOWN)
def test_what_was_scraped_has_every_feature_of_what_was_recorded(
    prometheus: str, name: str
) -> None:
    case = cases()[name]
    at = moment(case)
    observed = read(prometheus, f'{{instance="{name}"}}', at)
    expected = verdict_on(as_scraped(case.observations), at)
    found = verdict_on(observed, at)

    assert dict(found.features) == dict(expected.features)
    assert (roots(found), found.verdict, found.samples) == (
        roots(expected),
        expected.verdict,
        expected.samples,
    )
    assert (roots(found), found.verdict) == (roots(case.diagnose(at)), case.diagnose(at).verdict)


def test_the_first_and_the_last_scrape_of_a_stretch_belong_to_it(prometheus: str) -> None:
    times = [o.t for o in cases()["queue-overload"].observations][10:20]
    source = PrometheusSource(prometheus, '{instance="queue-overload"}')
    found = source.observations(start=times[0], end=times[-1], full_from=times[0], step_s=1.0)

    assert [o.t for o in found] == times


def test_the_older_past_is_thinned(prometheus: str) -> None:
    times = [o.t for o in cases()["queue-overload"].observations]
    source = PrometheusSource(prometheus, '{instance="queue-overload"}')
    found = source.observations(start=times[0], end=times[-1], full_from=times[40], step_s=10.0)

    assert sum(o.t < times[40] for o in found) == 4
    assert [o.t for o in found if o.t >= times[40]] == times[40:]


@pytest.mark.parametrize("job", ["ray", "clash"])
def test_names_and_labels_that_collectors_changed_are_found_again(
    prometheus: str, job: str
) -> None:
    case = cases()["kv-preemption-thrash"]
    verdict = verdict_on(read(prometheus, f'{{job="{job}"}}', moment(case)), moment(case))

    assert (roots(verdict), verdict.model) == (["kv-preemption-thrash"], "tiny")
    assert dict(verdict.features) == dict(case.diagnose(moment(case)).features)


def test_targets_can_be_chosen_by_what_their_pages_say(prometheus: str) -> None:
    case = cases()["queue-overload"]
    found = read(prometheus, 'model_name="tiny",instance="queue-overload"', moment(case))

    assert verdict_on(found, moment(case)).features == case.diagnose(moment(case)).features


def test_a_scrape_every_three_seconds_is_enough_for_an_overload(prometheus: str) -> None:
    case = cases()["queue-overload"]
    verdict = verdict_on(read(prometheus, '{job="slow"}', moment(case)), moment(case))

    assert roots(verdict) == ["queue-overload"]
    assert verdict.samples < 20


def test_the_window_grows_with_the_scrape_interval() -> None:
    observed = [
        metrics(t, target, "") for t in range(0, 900, 15) for target in ("chat-0", "chat-1")
    ]

    assert wide_enough(observed, 60.0) == 15 * ENOUGH_PAGES
    assert wide_enough(observed, 600.0) == 600.0
    assert wide_enough(observed[:1], 60.0) == 60.0


def test_one_instance_under_two_jobs_is_two_targets(prometheus: str) -> None:
    found = read(prometheus, '{namespace="twins"}', moment(cases()["baseline"]))

    assert {o.target for o in found} == {
        "10.0.0.1:8000/blue/twins",
        "10.0.0.1:8000/green/twins",
    }


def test_a_replica_that_is_down_all_the_time_is_seen_beside_its_peers(prometheus: str) -> None:
    found = read(prometheus, '{job="fleet"}', moment(cases()["baseline"]))
    kinds = {name: {o.kind for o in found if o.target == name} for name in ("fleet-0", "fleet-2")}

    assert kinds == {"fleet-0": {"metrics"}, "fleet-2": {"error"}}


def test_a_job_of_which_nothing_answers_is_unknown_not_absent(
    prometheus: str, opsctl: Opsctl
) -> None:
    at = str(moment(cases()["baseline"]))
    asked = ("--prometheus", prometheus, "--match", '{job="all-down"}', "--at", at)
    found = opsctl.run("diagnose", *asked)

    assert found.returncode == 3
    assert "UNKNOWN all-down-0: no metrics" in found.stdout


def test_a_replica_that_went_before_the_window_is_left_out(prometheus: str) -> None:
    recorded = cases()["second/kv-preemption-thrash"].observations[-1].t
    latest = max(case.observations[-1].t for case in cases().values())
    found = from_prometheus(
        prometheus, '{job="recorded"}', None, end=latest, window_s=latest - recorded - 120
    )

    assert "second/kv-preemption-thrash" not in {o.target for o in found}


def iso(t: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(t))


@pytest.mark.parametrize("spelt", ["iso", "unix"])
def test_the_command_names_the_root_of_a_moment_in_the_past(
    prometheus: str, opsctl: Opsctl, spelt: str
) -> None:
    at = moment(cases()["kv-preemption-thrash"])
    found = opsctl.run(
        *("diagnose", "--prometheus", prometheus, "--match", '{instance="kv-preemption-thrash"}'),
        *("--at", iso(at) if spelt == "iso" else str(at), "--window", "1m", "--output", "json"),
    )
    (target,) = json.loads(found.stdout)["targets"]

    assert found.returncode == 2
    assert (target["causes"][0]["id"], target["window"]["source"]) == (
        "kv-preemption-thrash",
        "prometheus",
    )


@pytest.fixture
def live(
    part: Callable[[str], Path], opsctl: Opsctl, tmp_path: Path
) -> Iterator[tuple[str, float]]:
    """A Prometheus that scrapes an overload and a dying engine every second, and since when."""
    binary = part("prometheus")
    replays = {
        job: opsctl.start_replay(RECORDINGS / f"{job}.jsonl.gz").removeprefix("http://")
        for job in ("queue-overload", "engine-dead")
    }
    # both targets get a label that their pages have too
    relabel = {"relabel_configs": [{"target_label": "engine", "replacement": "rack-3"}]}
    server = RealPrometheus(
        binary,
        tmp_path,
        reserve_port(),
        scrape={job: [address] for job, address in replays.items()},
        job_settings=relabel,
    )
    server.start()
    yield server.url, time.time()
    server.stop()


def test_what_prometheus_scrapes_is_diagnosed_like_what_opsctl_reads(
    live: tuple[str, float], opsctl: Opsctl
) -> None:
    url, began = live
    asked = ("diagnose", "--prometheus", url, "--match", '{job=~"queue-overload|engine-dead"}')
    now = opsctl.run(*asked, "--output", "json")

    def both_are_named() -> bool:
        nonlocal now
        now = opsctl.run(*asked, "--output", "json")
        if not now.stdout:
            # nothing was scraped yet
            return False
        causes = {
            target["causes"][0]["id"]: target["verdict"]
            for target in json.loads(now.stdout)["targets"]
            if target["causes"]
        }
        return causes == {"queue-overload": "critical", "engine-dead": "critical"}

    wait_for(both_are_named, timeout_s=120, what="both roots", said=lambda: now.stdout)
    early = opsctl.run(*asked, "--at", f"{began + HEALTHY_S}", "--window", "10s", "-o", "json")

    assert (now.returncode, json.loads(now.stdout)["verdict"]) == (2, "critical")
    assert not any(target["causes"] for target in json.loads(early.stdout)["targets"])


def one_line(found: subprocess.CompletedProcess[str]) -> str:
    """The message, which is all that was said."""
    assert "Traceback" not in found.stderr
    assert found.stdout == ""
    (line,) = found.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("match", "said"),
    [
        ('{job="nobody"}', 'no vLLM target that matches {job="nobody"} in the 60 s to 2026-'),
        ("{job=vllm}", "write it like '{job=\"vllm\"}'"),
        ("job==", "write it like '{job=\"vllm\"}'"),
    ],
)
def test_matchers_that_cannot_be_used_are_one_line(
    prometheus: str, opsctl: Opsctl, match: str, said: str
) -> None:
    found = opsctl.run(
        *("diagnose", "--prometheus", prometheus, "--match", match),
        *("--at", str(moment(cases()["baseline"]))),
    )

    assert said in one_line(found)
    assert found.returncode == 64


def test_a_time_of_which_nothing_is_kept_is_one_line(prometheus: str, opsctl: Opsctl) -> None:
    found = opsctl.run("diagnose", "--prometheus", prometheus, "--at", "2020-01-01T00:00:00")

    assert "no vLLM target at all in the 60 s to 2020-01-01 00:00:00 UTC" in one_line(found)
    assert found.returncode == 64


def test_a_token_variable_that_is_not_set_is_one_line(opsctl: Opsctl) -> None:
    found = opsctl.run(
        *("diagnose", "--prometheus", "http://127.0.0.1:9", "--prometheus-token-env", "NO_TOKEN")
    )

    assert "--prometheus-token-env NO_TOKEN: no such environment variable" in one_line(found)
    assert found.returncode == 64


def test_a_url_that_is_none_is_one_line(opsctl: Opsctl) -> None:
    found = opsctl.run("diagnose", "--prometheus", "ftp://chat-0")

    assert "--prometheus: " in one_line(found)
    assert found.returncode == 64


def test_a_url_where_nothing_listens_is_one_line(opsctl: Opsctl) -> None:
    found = opsctl.run("diagnose", "--prometheus", f"http://127.0.0.1:{reserve_port()}")

    assert "connection refused" in one_line(found)
    assert found.returncode == 3


def test_a_url_that_is_no_prometheus_is_one_line(opsctl: Opsctl) -> None:
    url = opsctl.start_replay(RECORDINGS / "baseline.jsonl.gz")
    found = opsctl.run("diagnose", "--prometheus", url)

    assert "not Prometheus's API; give the base URL" in one_line(found)
    assert found.returncode == 3


@pytest.fixture
def fake_thanos() -> Iterator[Callable[[int, object], str]]:
    """Says what a Thanos says that cannot answer: a real one takes a fleet of stores to get there."""
    servers = ExitStack()

    def start(status: int, answer: object) -> str:
        class FakeThanos(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Stay silent."""

        return servers.enter_context(serving(ThreadingHTTPServer(("127.0.0.1", 0), FakeThanos)))

    with servers:
        yield start


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (
            422,
            {
                "status": "error",
                "errorType": "execution",
                "error": "expanding series: no store\nmatched",
            },
            "execution: expanding series: no store matched",
        ),
        (503, {"status": "error", "errorType": "timeout", "error": "query timed out"}, "timed out"),
        (401, {"message": "no"}, "--prometheus-token-env"),
        (200, {"status": "success", "data": {"resultType": "scalar"}}, "not Prometheus's API"),
        (200, ["no", "object"], "not Prometheus's API"),
    ],
)
def test_what_a_store_cannot_answer_is_told_in_its_own_words(
    fake_thanos: Callable[[int, object], str], status: int, answer: object, said: str
) -> None:
    source = PrometheusSource(fake_thanos(status, answer), '{job="vllm"}')

    with pytest.raises(BadPage) as caught:
        source.observations(start=0.0, end=60.0, full_from=0.0, step_s=1.0)

    assert said in caught.value.detail
    assert "\n" not in caught.value.detail

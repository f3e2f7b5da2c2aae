"""
Situations that look like trouble and are none, or that nobody can judge: never a wrong root cause.

Pages are built line by line, for no engine can be asked to look like this on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable

from vllm_opsctl.exporter.observation import Observation, metrics
from vllm_opsctl.runbooks.diagnosis import diagnose_target
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.verdict import TargetVerdict

START = 1_000_000.0
"""When the process started, unix seconds; pages follow it."""


def engine_lines(
    *,
    engine: str = "0",
    model: str = "chat",
    running: float = 0,
    waiting: float = 0,
    kv: float = 0.1,
    done: float = 100,
    hits: float | None = None,
) -> list[str]:
    """One engine that has finished `done` requests of 100 prompt and 50 output tokens."""
    labels = f'model_name="{model}",engine="{engine}"'
    values = {
        "num_requests_running": running,
        "num_requests_waiting": waiting,
        "kv_cache_usage_perc": kv,
        "prompt_tokens_total": 100 * done,
        "generation_tokens_total": 50 * done,
        "num_preemptions_total": 0,
        "prefix_cache_queries_total": 100 * done,
        "prefix_cache_hits_total": 90 * done if hits is None else hits,
    }
    lines = [f"vllm:{name}{{{labels}}} {value}" for name, value in values.items()]
    lines.append(f'vllm:request_success_total{{{labels},finished_reason="stop"}} {done}')
    for family, mean in (
        ("time_to_first_token_seconds", 0.05),
        ("inter_token_latency_seconds", 0.01),
        ("request_prompt_tokens", 100),
        ("iteration_tokens_total", 20),
    ):
        name = f"vllm:{family}"
        lines += [
            f'{name}_bucket{{{labels},le="{mean}"}} {done}',
            f'{name}_bucket{{{labels},le="+Inf"}} {done}',
            f"{name}_sum{{{labels}}} {mean * done}",
            f"{name}_count{{{labels}}} {done}",
        ]
    return lines


def page(
    t: float, *engines: list[str], fds: float = 30, start: float = START, cpu: float = 1
) -> Observation:
    """A page of a process with some engines."""
    lines = [
        "# TYPE vllm:num_requests_running gauge",
        f"process_start_time_seconds {start}",
        f"process_open_fds {fds}",
        f"process_cpu_seconds_total {cpu}",
        *(line for engine in engines for line in engine),
    ]
    return metrics(START + t, "chat-0", "\n".join(lines) + "\n")


def canary(t: float, *, ok: bool) -> Observation:
    """A canary completion that answered, or timed out."""
    data = {"ok": ok, "seconds": 0.05 if ok else 10.0, "reason": None if ok else "timeout"}
    return Observation(START + t, "chat-0", "probe", data)


def judged(observations: Iterable[Observation]) -> TargetVerdict:
    return diagnose_target("chat-0", list(observations), shipped_library(), source="recording")


def roots(observations: Iterable[Observation]) -> list[str]:
    return [cause.id for cause in judged(observations).roots]


def test_a_burst_that_has_just_connected_has_not_waited() -> None:
    idle = [page(t, engine_lines()) for t in range(25)]
    burst = page(25, engine_lines(), fds=90)
    served = [page(t, engine_lines(done=100 + 10 * (t - 25)), fds=90) for t in range(26, 40)]

    assert roots([*idle, burst, *served]) == []


def test_a_health_check_that_comes_and_goes_is_no_client() -> None:
    assert roots(page(t, engine_lines(), fds=40 if t == 12 else 30) for t in range(25)) == []


def test_the_clients_of_a_busy_engine_are_not_those_of_its_idle_sibling() -> None:
    pages = [
        page(t, engine_lines(done=100 + 5 * t), engine_lines(engine="1"), fds=30 + t)
        for t in range(30)
    ]

    assert (judged(pages).verdict, roots(pages)) == ("healthy", [])


def test_a_sibling_that_works_does_not_hide_an_engine_that_stands() -> None:
    pages = [
        page(t, engine_lines(done=100 + 5 * t), engine_lines(engine="1", running=3))
        for t in range(30)
    ]

    assert roots(pages) == ["engine-hung"]


def test_a_canary_that_waits_in_the_queue_after_a_quiet_hour_is_no_frozen_engine() -> None:
    quiet = [page(t, engine_lines()) for t in range(20)]
    busy = [
        page(
            t,
            engine_lines(done=100 + 4 * (t - 20), running=8, waiting=5 * (t - 19)),
            fds=30 + 5 * t,
        )
        for t in range(20, 50)
    ]

    assert roots([*quiet, *busy, canary(49.5, ok=False)]) != ["engine-hung"]


def test_a_gauge_that_froze_while_nothing_ran_is_no_frozen_engine() -> None:
    """After a mass abort `running` keeps its last value until the next step."""
    stuck = [page(t, engine_lines(running=3)) for t in range(16)]
    served = [page(t, engine_lines(done=100 + 3 * (t - 15))) for t in range(16, 50)]

    assert roots([*stuck, *served]) == []


def test_one_request_without_a_hit_is_no_regression_of_the_cache() -> None:
    warm = [page(t, engine_lines(done=100 + t)) for t in range(20)]
    quiet = [page(t, engine_lines(done=119)) for t in range(20, 60)]
    one = [page(t, engine_lines(done=120, hits=90 * 119)) for t in range(60, 66)]

    assert roots([*warm, *quiet, *one]) == []


def test_one_page_is_never_enough() -> None:
    assert judged([page(0, engine_lines(running=1, waiting=1))]).verdict == "unknown"


def test_a_503_of_before_is_not_the_last_word() -> None:
    refused = Observation(START + 10, "chat-0", "health", {"status": 503, "seconds": 0.01})
    pages = [page(t, engine_lines(done=100 + t)) for t in range(30)]

    assert roots([*pages[:10], refused, *pages[10:]]) == []


def test_a_dead_engine_behind_a_server_that_stays_is_named() -> None:
    """VLLM_KEEP_ALIVE_ON_ENGINE_DEATH=1: /metrics answers, /health says 503 for good."""
    pages = [page(t, engine_lines(done=100 + min(t, 8))) for t in range(30)]
    refused = Observation(START + 29.5, "chat-0", "health", {"status": 503, "seconds": 0.01})

    assert roots([*pages, refused]) == ["engine-dead"]


def test_a_restart_with_another_model_is_a_restart() -> None:
    before = [page(t, engine_lines(done=100 + t)) for t in range(15)]
    after = [
        page(t, engine_lines(model="other", done=t - 30), start=START + 25) for t in range(31, 50)
    ]
    verdict = judged([*before, *after])

    assert [cause.id for cause in verdict.roots] == ["process-restart"]
    assert verdict.model == "other"
    assert "engine chat/0 vanished" in verdict.blind_spots


def test_two_servers_behind_one_url_are_not_restarts() -> None:
    pages = [
        page(
            t,
            engine_lines(done=100 if t % 2 else 5000),
            start=START - 500 if t % 2 else START - 9000,
        )
        for t in range(30)
    ]
    verdict = judged(pages)

    assert (verdict.verdict, verdict.causes) == ("unknown", ())
    assert "several servers" in verdict.summary


def test_what_missing_numbers_leave_open_is_not_called_ruled_out() -> None:
    """Without a waiting gauge nobody can say whether it was overload."""
    lost = [
        page(t, [x for x in engine_lines(done=100 + 0 * t) if "num_requests_waiting" not in x])
        for t in range(10)
    ]
    verdict = judged(lost)

    assert "queue-overload" not in [entry.id for entry in verdict.ruled_out]


def test_a_clock_that_is_set_back_in_an_incident_hides_nothing() -> None:
    pages = [
        page(
            t if t < 20 else t - 15,
            engine_lines(done=100 + 2 * t, running=2, waiting=5 + t, kv=0.1),
        )
        for t in range(40)
    ]
    verdict = judged(pages)

    assert [cause.id for cause in verdict.roots] == ["concurrency-cap", "clock-skew"]
    assert any("clock" in spot for spot in verdict.blind_spots)


def test_an_idle_engine_that_only_probes_have_used_has_no_before() -> None:
    """Probes hit the prefix cache with every second prompt; new users do not."""
    probed = [
        page(t, engine_lines(done=100 + 3 * (t // 10), hits=90 * 100 + 150 * (t // 10)))
        for t in range(60)
    ]
    probes = [
        Observation(START + t, "chat-0", "probe", {"name": name, "ok": True, "seconds": 0.05})
        for t in range(10, 60, 10)
        for name in ("canary", "repeat")
    ]
    busy = [
        page(t, engine_lines(done=118 + 5 * (t - 60), hits=90 * 100 + 900, running=3))
        for t in range(60, 90)
    ]
    observed = sorted([*probed, *probes, *busy], key=lambda o: o.t)
    verdict = judged(observed)

    assert verdict.features.get("reference.kind") != "earlier window"
    assert [cause.id for cause in verdict.roots] == []

"""
opsctl slo status and report on a real Prometheus that is given its past.

Thirty days to a fixed moment, scraped every 100 s, 600 events every five minutes, so that every number
is known beforehand.
"""

from __future__ import annotations

import doctest
import json
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Opsctl
from loopback import serving
from parts.prometheus import RealPrometheus
from ports import reserve_port

from vllm_opsctl.alarms.rules import build_rules
from vllm_opsctl.alarms.status_query import Prometheus
from vllm_opsctl.cli import slo_text
from vllm_opsctl.cli.main import run
from vllm_opsctl.cli.slo_text import Row, cell, objectives_table
from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.config import Config

AT = "2025-06-30T12:00:00"
END = datetime.fromisoformat(AT).replace(tzinfo=UTC).timestamp()
DAY = 86400.0
START = END - 30 * DAY
SCRAPE_S = 100
PER_SCRAPE = 200.0
SLOTS = 30 * 288
EVENTS = SLOTS * 600.0

OUTAGE = datetime(2025, 6, 10, 12, tzinfo=UTC).timestamp()
DEGRADED = datetime(2025, 6, 20, 6, tzinfo=UTC).timestamp()

CONFIG = """
service: {name: fleet}
objectives:
  - {name: availability, sli: availability, target: 99.9%}
  - {name: ttft, sli: time_to_first_token, threshold: 1s, target: 95%}
"""

Bad = Callable[[float], float]


def ours(t: float) -> float:
    """Half an hour of total outage, and five hours of 2 %."""
    if OUTAGE < t <= OUTAGE + 1800:
        return 1.0
    return 0.02 if DEGRADED < t <= DEGRADED + 5 * 3600 else 0.0


def last_hour(t: float) -> float:
    """Half of the last hour's events."""
    return 0.5 if t > END - 3600 else 0.0


def counter(name: str, labels: str, share: Bad, *, days: float = 30, reset_every: int = 0) -> str:
    """A counter of a share of the events, since some days; restarts after so many scrapes."""
    lines = []
    value = 0.0
    first = END - days * DAY
    for number in range(int(days * DAY / SCRAPE_S) + 1):
        t = first + number * SCRAPE_S
        if number:
            grown = PER_SCRAPE * share(t)
            is_reset = reset_every and number % reset_every == 0
            value = grown if is_reset else value + grown
        lines.append(f"{name}{{{labels}}} {value:.6f} {t:.3f}")
    return "\n".join(lines) + "\n"


def events(objective: str, model: str, bad: Bad, **more: Any) -> Iterator[str]:
    """A sidecar's counters of an objective."""
    own = f'service="fleet",objective="{objective}",model="{model}",target="t"'
    where = f'{own},job="sidecar",instance="s:9836"'
    name = "vllm_sli_events_total"
    yield counter(name, f'{where},outcome="good"', lambda t: 1 - bad(t), **more)
    yield counter(name, f'{where},outcome="bad"', bad, **more)


def recorded(objective: str, service: str, bad: Bad, days: float) -> Iterator[str]:
    """What our rules would have recorded each minute."""
    where = f'objective="{objective}",service="{service}",model="org/chat"'
    for name, share in (("total", lambda t: 1.0), ("bad", bad)):
        lines = []
        for number in range(int(days * DAY / 60) + 1):
            t = END - days * DAY + number * 60
            lines.append(f"llm_slo:{name}:rate5m{{{where}}} {2 * share(t):.6f} {t:.3f}")
        yield "\n".join(lines) + "\n"


def vllm_page() -> Iterator[str]:
    """Two days of a vLLM's own counters; its 5xx series is born with the first failure."""
    page = 'job="vllm",instance="v:8000"'
    engine = f'{page},model_name="org/chat",engine="0"'
    born = END - 3600
    http = f'handler="/v1/completions",method="POST",{page}'
    yield counter("http_requests_total", f'{http},status="2xx"', lambda t: 0.9, days=2)
    # 20 of them happen before it is scraped for the first time
    lines = [
        f'http_requests_total{{{http},status="5xx"}} {20.0 * (n + 1):.1f} {born + n * SCRAPE_S:.3f}'
        for n in range(37)
    ]
    yield "\n".join(lines) + "\n"
    yield counter("vllm:num_requests_running", engine, lambda t: 0.0, days=2)
    first = "vllm:time_to_first_token_seconds"
    yield counter(f"{first}_bucket", f'{engine},le="1.0"', lambda t: 0.975, days=2)
    yield counter(f"{first}_count", engine, lambda t: 1.0, days=2)


def past() -> Iterator[str]:
    """Everything that the server is given."""
    yield from events("availability", "org/chat", ours)
    yield from events("availability", "org/code", lambda t: 0.0)
    yield from events("ttft", "org/chat", lambda t: 0.1)
    yield from events("fast", "org/chat", last_hour, days=2, reset_every=500)
    yield from recorded("mixed", "fleet", lambda t: 0.002, 1)
    yield from events("mixed", "org/chat", lambda t: 0.001, days=3)
    yield from recorded("foreign", "other-fleet", lambda t: 0.5, 0.1)
    yield from vllm_page()


def backfill(promtool: Path, lines: Iterator[str], data: Path) -> None:
    """Write one block; promtool reads its input again for each of its usual two hours."""
    text = data.parent / "past.txt"
    with text.open("w") as stream:
        stream.writelines(lines)
        stream.write("# EOF\n")
    command = [str(promtool), "tsdb", "create-blocks-from", "--max-block-duration=1000h"]
    subprocess.run([*command, "openmetrics", "--quiet", str(text), str(data)], check=True)
    text.unlink()


@pytest.fixture(scope="module")
def server(part: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL."""
    folder = tmp_path_factory.mktemp("prometheus")
    binary, promtool = part("prometheus"), part("promtool")
    prometheus = RealPrometheus(binary, folder, reserve_port())
    backfill(promtool, past(), prometheus.data)
    prometheus.start()
    yield prometheus.url
    prometheus.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "opsctl.yaml").write_text(CONFIG)
    return tmp_path


def configured(folder: Path, *objectives: str, service: str = "fleet") -> None:
    """Replace the configuration."""
    lines = [f"  - {{{objective}}}" for objective in objectives]
    text = "\n".join([f"service: {{name: {service}}}", "objectives:", *lines])
    (folder / "opsctl.yaml").write_text(text + "\n")


def asked(
    opsctl: Opsctl, folder: Path, *arguments: str, code: int, at: str | None = AT
) -> dict[tuple[str, str | None], dict[str, Any]]:
    """The objectives of the JSON answer by name and model."""
    when = ("--at", at) if at else ()
    answer = opsctl.run("slo", *arguments, *when, "-o", "json", cwd=folder)
    assert answer.returncode == code, answer.stderr
    data = json.loads(answer.stdout)
    assert data["schema_version"] == 1
    return {(one["objective"], one["model"]): one for one in data["objectives"]}


def burn_of(one: dict[str, Any], window_s: float) -> dict[str, Any]:
    found: dict[str, Any] = next(burn for burn in one["burn"] if burn["window_s"] == window_s)
    return found


def test_status_knows_what_was_counted(opsctl: Opsctl, folder: Path, server: str) -> None:
    found = asked(opsctl, folder, "status", "--prometheus", server, code=2)

    chat = found["availability", "org/chat"]
    assert chat["events"] == pytest.approx(EVENTS)
    assert chat["bad"] == pytest.approx(6 * 600 + 60 * 12)
    assert chat["budget_used"] == pytest.approx(4320 / 5184)
    assert chat["known_s"] == 30 * DAY
    assert (chat["state"], chat["gone_in_s"]) == ("ok", None)
    code = found["availability", "org/code"]
    assert (code["bad"], code["budget_left"]) == (0, 1)
    ttft = found["ttft", "org/chat"]
    assert ttft["budget_left"] == pytest.approx(-1)
    assert burn_of(ttft, 3600)["rate"] == pytest.approx(2)
    assert (ttft["state"], ttft["gone_in_s"]) == ("exhausted", 0)


def test_two_days_are_told_and_restarts_lose_nothing(
    opsctl: Opsctl, folder: Path, server: str
) -> None:
    configured(folder, "name: fast, sli: availability, target: 98%")

    fast = asked(opsctl, folder, "status", "--prometheus", server, code=2)["fast", "org/chat"]
    text = opsctl.run("slo", "status", "--prometheus", server, "--at", AT, cwd=folder)

    assert fast["known_s"] == 2 * DAY
    assert fast["since"] == END - 2 * DAY
    assert fast["events"] == pytest.approx(2 * 288 * 600)
    assert fast["bad"] == pytest.approx(12 * 300)
    assert burn_of(fast, 3600)["rate"] == pytest.approx(25)
    assert burn_of(fast, 300)["rate"] == pytest.approx(25)
    assert burn_of(fast, 6 * 3600)["rate"] == pytest.approx(25 / 6)
    assert fast["state"] == "burning fast"
    # 3,600 of 6,912; while both days and their budget grow, 24 of 25 bad events eat into it
    assert fast["budget_left"] == pytest.approx(1 - 3600 / 6912)
    assert fast["gone_in_s"] == pytest.approx(2 * DAY * (1 - 3600 / 6912) / 24)
    assert "of 30 days, 2 days are known" in " ".join(text.stdout.split())


def test_the_moment_can_be_chosen(opsctl: Opsctl, folder: Path, server: str) -> None:
    configured(folder, "name: availability, sli: availability, target: 99.9%")

    found = asked(
        opsctl, folder, "status", "--prometheus", server, code=2, at="2025-06-10T12:30:00"
    )

    chat = found["availability", "org/chat"]
    assert burn_of(chat, 300)["rate"] == pytest.approx(1000)
    assert chat["known_s"] == pytest.approx(10 * DAY + 1800)
    assert chat["state"] == "exhausted"


def test_recorded_series_come_first_and_raw_ones_before_them(
    opsctl: Opsctl, folder: Path, server: str
) -> None:
    """Recorded for a day with 0.2 % bad; the counters of the two days before say 0.1 %."""
    configured(folder, "name: mixed, sli: availability, target: 99%")

    mixed = asked(opsctl, folder, "status", "--prometheus", server, code=0)["mixed", "org/chat"]

    assert mixed["known_s"] == 3 * DAY
    # the recording's first sample stands on the boundary, so one slot more is recorded
    assert mixed["bad"] == pytest.approx(289 * 1.2 + 575 * 0.6)
    assert burn_of(mixed, DAY)["rate"] == pytest.approx(0.2)


def test_vllms_own_counters_count_the_same(opsctl: Opsctl, folder: Path, server: str) -> None:
    found = asked(opsctl, folder, "status", "--prometheus", server, "--from", "vllm", code=2)

    ttft = found["ttft", "org/chat"]
    assert ttft["events"] == pytest.approx(2 * 288 * 600)
    assert ttft["budget_left"] == pytest.approx(0.5)
    # 36 steps of 20; the 20 before the first scrape are not claimed
    assert found["availability", "org/chat"]["bad"] == pytest.approx(720, rel=0.02)


def test_rules_that_are_evaluated_say_what_the_counters_say(
    part: Callable[[str], Path], opsctl: Opsctl, folder: Path, server: str, tmp_path: Path
) -> None:
    """Our own rule file, evaluated by promtool over six hours around the outage."""
    config = Config.model_validate(yaml.safe_load(CONFIG))
    book = build_rules(config, "sidecar")
    rules = [r for g in book.groups for r in g["rules"] if r.get("record", "").endswith(":rate5m")]
    group = {"name": "llm-slo-short", "interval": "1m", "rules": rules}
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [group]}))
    prometheus = RealPrometheus(part("prometheus"), tmp_path / "second", reserve_port())
    span = (OUTAGE - 3 * 3600, OUTAGE + 3 * 3600)
    command = [str(part("promtool")), "tsdb", "create-blocks-from", "rules", f"--url={server}"]
    where = [f"--start={span[0]:.0f}", f"--end={span[1]:.0f}", f"--output-dir={prometheus.data}"]
    subprocess.run(
        [*command, *where, str(tmp_path / "rules.yaml")], check=True, capture_output=True
    )
    prometheus.start()

    try:
        at = datetime.fromtimestamp(span[1], UTC).isoformat()
        arguments = ("report", "--days", "1", "--prometheus")
        by_rules = asked(opsctl, folder, *arguments, prometheus.url, code=2, at=at)
        by_counters = asked(opsctl, folder, *arguments, server, code=2, at=at)
    finally:
        prometheus.stop()

    one, other = (found["availability", "org/chat"] for found in (by_rules, by_counters))
    # promtool starts at the interval's next step
    assert one["known_s"] == pytest.approx(6 * 3600, abs=600)
    assert other["bad"] == pytest.approx(3600)
    # windows that stand askew to scrapes lose or gain up to a scrape at each edge of an outage
    assert one["bad"] == pytest.approx(3600, abs=2 * PER_SCRAPE)
    (episode,) = one["episodes"]
    assert (episode["start"], episode["length_s"]) == (
        pytest.approx(OUTAGE, abs=300),
        pytest.approx(1800, abs=300),
    )


def test_a_month_has_its_days_and_episodes(opsctl: Opsctl, folder: Path, server: str) -> None:
    found = asked(
        opsctl, folder, "report", "--prometheus", server, "--month", "2025-06", code=2, at=None
    )

    chat = found["availability", "org/chat"]
    allowed = chat["events"] * 0.001
    assert chat["known_s"] == 29.5 * DAY
    assert chat["met"] is True
    assert len(chat["days"]) == 30
    worst = {day["date"]: day["bad"] for day in chat["days"] if day["bad"] > 0}
    assert worst == {"2025-06-10": pytest.approx(3600), "2025-06-20": pytest.approx(720)}
    outage, degraded = chat["episodes"]
    assert (outage["start"], outage["length_s"]) == (OUTAGE, 1800)
    assert outage["budget_spent"] == pytest.approx(3600 / allowed)
    assert outage["peak_burn"] == pytest.approx(1000)
    assert (degraded["start"], degraded["length_s"]) == (DEGRADED, 5 * 3600)
    assert chat["remaining"][-1][1] == pytest.approx(chat["budget_left"])
    assert found["ttft", "org/chat"]["met"] is False


@pytest.mark.parametrize("width", ["80", "160"])
def test_both_fit_a_terminal(opsctl: Opsctl, folder: Path, server: str, width: str) -> None:
    shown = {"COLUMNS": width}
    status = opsctl.run("slo", "status", "--prometheus", server, "--at", AT, cwd=folder, env=shown)
    report = opsctl.run("slo", "report", "--prometheus", server, "--at", AT, cwd=folder, env=shown)

    for answer in (status, report):
        assert answer.returncode == 2, answer.stderr
        assert max(map(len, answer.stdout.splitlines())) <= int(width)
        assert "\x1b" not in answer.stdout
    lines = status.stdout.splitlines()
    assert lines[0] == "EXHAUSTED 3 budgets: 1 exhausted, 2 ok"
    assert "all of 30 days are known" in " ".join(status.stdout.split())
    rows = [line.split() for line in lines if line.startswith(("exhausted", "ok"))]
    assert [row[:3] for row in rows] == [
        ["exhausted", "ttft", "org/chat"],
        ["ok", "availability", "org/chat"],
        ["ok", "availability", "org/code"],
    ]
    assert "fleet, 30 days: 2 of 3 objectives met" in report.stdout
    assert "2025-06-10 12:00" in report.stdout
    assert ("Events" in report.stdout) == (width == "160")


def test_a_report_has_a_picture_and_markdown(opsctl: Opsctl, folder: Path, server: str) -> None:
    pytest.importorskip("matplotlib")

    arguments = ("--at", AT, "--plot", "budget.svg", "-o", "markdown")
    answer = opsctl.run("slo", "report", "--prometheus", server, *arguments, cwd=folder)

    assert answer.returncode == 2
    assert answer.stderr == "budget.svg written\n"
    assert "![Error budget remaining](budget.svg)" in answer.stdout
    assert "| 2025-06-10 12:00 | 30 min | 3,600 | 1000x | 69.4 % |" in answer.stdout
    assert (folder / "budget.svg").read_text().startswith("<?xml")


def test_the_configured_prometheus_is_asked(opsctl: Opsctl, folder: Path, server: str) -> None:
    (folder / "opsctl.yaml").write_text(f"{CONFIG}alarms: {{prometheus_url: '{server}'}}\n")

    found = asked(opsctl, folder, "status", code=2)

    assert ("ttft", "org/chat") in found


def test_an_objective_without_data_is_unknown_not_healthy(
    opsctl: Opsctl, folder: Path, server: str
) -> None:
    configured(
        folder,
        "name: mixed, sli: availability, target: 99%",
        "name: unheard, sli: availability, target: 99%",
        "name: returning, sli: time_to_first_token_cached, threshold: 180ms, target: 95%",
    )

    answer = opsctl.run("slo", "status", "--prometheus", server, "--at", AT, cwd=folder)

    assert answer.returncode == 3
    assert "unheard (no data): no vllm_sli_events_total of it" in answer.stdout
    assert "returning (not measured): " in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("status",), 64, "give --prometheus URL or --sidecar URL, or set alarms.prometheus_url"),
        (("report",), 64, "a sidecar has no past to report on"),
        (("status", "--prometheus", "SERVER", "--sidecar", "http://x"), 64, "choose one"),
        (("status", "--sidecar", "http://127.0.0.1:1", "--at", "-5m"), 64, "a sidecar tells about"),
        (("status", "--prometheus", "ftp://host"), 64, "is not a server's URL"),
        (("status", "--sidecar", "ftp://host"), 64, "is not a server's URL"),
        (("status", "--prometheus", "http://127.0.0.1:1"), 3, "127.0.0.1:1"),
        (("status", "--sidecar", "http://127.0.0.1:1"), 3, "127.0.0.1:1"),
        (("status", "--prometheus", "SERVER/nowhere"), 3, "not Prometheus's API"),
        (("status", "--sidecar", "SERVER"), 3, "no sidecar answers there"),
        (("status", "--prometheus", "SERVER", "--at", "2999-01-01"), 64, "in the future"),
        (("status", "--prometheus", "SERVER", "--at", "noon"), 64, "not a time"),
        (("status", "--prometheus", "SERVER", "--at", "2001-01-01"), 64, "no event of any"),
        (("status", "--prometheus", "SERVER", "--prometheus-token-env", "NONE_X"), 64, "NONE_X"),
        (("status", "--prometheus", "SERVER", "--vllm-version", "0.10"), 64, "--from vllm"),
        (("report", "--prometheus", "SERVER", "--month", "June"), 64, "write it like 2026-10"),
        (("report", "--prometheus", "SERVER", "--month", "2999-01"), 64, "has not begun"),
        (("report", "--prometheus", "SERVER", "--month", "2025-06", "--days", "3"), 64, "--days"),
        (("report", "--prometheus", "SERVER", "--days", "0"), 64, "--days"),
        (("report", "--prometheus", "SERVER", "--plot", "x.pdf"), 64, "name it .png or .svg"),
        (("report", "--prometheus", "SERVER", "--plot", "no/x.png"), 64, "create it first"),
    ],
)
def test_mistakes_are_told_with_the_fix(
    folder: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(folder)

    answered = run(["slo", *(one.replace("SERVER", server) for one in arguments)])

    output = capsys.readouterr()
    assert (answered, output.out) == (code, "")
    assert said in output.err
    assert [path.name for path in folder.iterdir()] == ["opsctl.yaml"]


def test_rules_of_another_service_are_named(opsctl: Opsctl, folder: Path, server: str) -> None:
    configured(folder, "name: foreign, sli: availability, target: 99%", service="mine")

    answer = opsctl.run("slo", "status", "--prometheus", server, "--at", AT, cwd=folder)

    assert (answer.returncode, answer.stdout) == (64, "")
    assert "its rules are of service 'fleet', 'other-fleet'" in answer.stderr
    assert "service.name is 'mine'" in answer.stderr


def test_nothing_measurable_is_a_matter_of_configuration(
    opsctl: Opsctl, folder: Path, server: str
) -> None:
    configured(folder, "name: ttft, sli: time_to_first_token, threshold: 180ms, target: 95%")

    answer = opsctl.run("slo", "status", "--prometheus", server, "--at", AT, cwd=folder)

    assert (answer.returncode, answer.stdout) == (64, "")
    assert "0.18 s is no bucket bound" in answer.stderr
    assert "--custom-histogram-buckets" in answer.stderr


def test_another_api_is_no_prometheus() -> None:
    """It answers as JSON and says success, but has no series."""

    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b'{"status": "success", "data": {"result": [{"name": "a row"}]}}'
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with (
        serving(ThreadingHTTPServer(("127.0.0.1", 0), Other)) as url,
        pytest.raises(BadPage, match="not Prometheus's API"),
    ):
        Prometheus(url).over_slots("x", START, END)


def test_names_are_shown_as_they_are() -> None:
    """Nothing in a model's name is markup, and no name breaks a table."""
    rows = [Row(("ok",), "availability", "org/[bold]m:smile:|$x$", ())]

    assert "org/[bold]m:smile:|$x$" in objectives_table(("State",), (), rows, 80)
    assert cell(rows[0].model) == "org/\\[bold\\]m:smile:&#124;$x$"
    assert doctest.testmod(slo_text).failed == 0

"""No secret is ever seen: canaries are planted everywhere, and every output of every command is searched."""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from canaries import MARK, Place, canary, plant, thief_and_bad_server
from command_tree import Arguments, every_command
from commands import InProcess, Opsctl
from loopback import http_get, wait_for
from paths import RECORDINGS

RECORDING = str(RECORDINGS / "queue-overload.jsonl.gz")
PASSWORD = canary("typed")
MISTYPED = (
    f"htp://admin:{PASSWORD}@h:8000",
    f"http//admin:{PASSWORD}@h",
    f"ftp://admin:{PASSWORD}@h/x",
    f"http://admin:{PASSWORD}@",
    f"admin:{PASSWORD}@h:8000",
    f"http://h:1/\x1b{PASSWORD}@x",
    f"http:/admin:{PASSWORD}@h",
    f"http://admin:a/b{PASSWORD}@h",
)
TOKEN = ("--prometheus-token-env", "PROM_TOKEN")
GRAFANA = ("--url", "{bad}/grafana", "--token-env", "GRAFANA_TOKEN")
MOVED_GRAFANA = ("--url", "{bad}/redirect", "--token-env", "GRAFANA_TOKEN")
DRILL = (
    *("--prometheus", "{bad}/empty", "--timeout", "1s", "--no-listen"),
    "--alertmanager",
)
IN_PROCESSES_OF_THEIR_OWN: tuple[Arguments, ...] = (
    ("exporter", "run"),
    ("exporter", "supervise"),
    ("replay",),
)

RUNS: dict[Arguments, tuple[tuple[str, ...], ...]] = {
    (): (("--help",), (MISTYPED[0],)),
    ("alarms",): (("--help",),),
    ("alarms", "apply"): (("--yes",),),
    ("alarms", "build"): (("--out", "built"), ("--out", "cloud", "--to", "cloudwatch")),
    ("alarms", "destroy"): (("--yes",),),
    ("alarms", "lint"): ((), ("--prometheus", "{bad}/prometheus")),
    ("alarms", "plan"): ((),),
    ("alarms", "test"): (
        ("--timeout", "1s", "--no-listen"),
        (*DRILL, "{bad}/denied"),
        (*DRILL, "{bad}/redirect"),
        *((*DRILL, url) for url in MISTYPED),
        ("--to", "cloudwatch", "--timeout", "1s"),
    ),
    ("autoscale",): (("--help",),),
    ("autoscale", "apply"): (("--yes",),),
    ("autoscale", "build"): (("--out", "scaling"),),
    ("autoscale", "destroy"): (("--yes",),),
    ("autoscale", "plan"): ((),),
    ("autoscale", "simulate"): ((RECORDING,),),
    ("cloudwatch",): (("--help",),),
    ("cloudwatch", "cost"): ((),),
    ("cloudwatch", "policy"): (("--for", "alarms"), ("--for", "alertmanager")),
    ("completion",): (("bash",),),
    ("config",): (("--help",),),
    ("config", "check"): ((), (MISTYPED[0],)),
    ("config", "init"): (("starter.yaml", "--force"),),
    ("config", "schema"): ((),),
    ("config", "show"): ((),),
    ("dashboards",): (("--help",),),
    ("dashboards", "annotate"): (("verdict.json", *GRAFANA), ("verdict.json", *MOVED_GRAFANA)),
    ("dashboards", "build"): (("--out", "boards"),),
    ("dashboards", "diff"): (
        GRAFANA,
        MOVED_GRAFANA,
        *(("--url", url, "--token-env", "GRAFANA_TOKEN") for url in MISTYPED),
        ("--url", "{bad}/reset", "--token-env", PASSWORD),
    ),
    ("dashboards", "push"): (GRAFANA, MOVED_GRAFANA),
    ("diagnose",): (
        ("--for", "1s", "--bundle", "{new}.tar.gz"),
        ("--alarm", "message.txt"),
        ("--sidecar", "{bad}/sidecar"),
        ("--sidecar", "{bad}/redirect"),
        ("--prometheus", "{bad}/prometheus", *TOKEN),
        ("--prometheus", "{bad}/redirect", *TOKEN),
        ("--prometheus", "{bad}/prometheus", "--prometheus-token-env", PASSWORD),
        ("--sagemaker", "chat"),
        ("--recording", RECORDING, "-o", "json", "--bundle", "{new}.tar.gz"),
        *((url,) for url in MISTYPED),
        *(("--sidecar", url) for url in MISTYPED),
        *(("--prometheus", url) for url in MISTYPED),
    ),
    ("explain",): (("kv.usage_max",), (MISTYPED[0],)),
    ("exporter",): (("--help",),),
    ("record",): (("--for", "1s", "-o", "{new}.jsonl"), *((u, "-o", "x.jsonl") for u in MISTYPED)),
    ("runbook",): (("--help",),),
    ("runbook", "build"): (("--out", "runbooks"),),
    ("runbook", "list"): ((),),
    ("runbook", "schema"): ((),),
    ("runbook", "show"): (("engine-hung",), (MISTYPED[0],)),
    ("runbook", "validate"): (("runbooks",),),
    ("slo",): (("--help",),),
    ("slo", "explain"): (("ttft",),),
    ("slo", "export"): (("--out", "slo.yaml"),),
    ("slo", "import"): (("slo.yaml",),),
    ("slo", "report"): (
        ("--prometheus", "{bad}/prometheus", *TOKEN),
        ("--prometheus", MISTYPED[0]),
    ),
    ("slo", "status"): (
        ("--prometheus", "{bad}/redirect", *TOKEN),
        ("--sidecar", "{bad}/denied"),
        ("--sidecar", MISTYPED[1]),
    ),
    ("tap",): (("--help",),),
    ("tap", "dump"): ((MISTYPED[0],),),
    ("top",): (("--once",), ("--once", "--sidecar", "{bad}/sidecar"), ("--once", MISTYPED[4])),
}
"""What every command is run with; {bad} is the server that fails, {new} a name that is free."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with thief_and_bad_server() as (thief, bad):
        yield plant(tmp_path_factory.mktemp("canaries"), bad, thief)


def test_every_command_is_run() -> None:
    assert {*RUNS, *IN_PROCESSES_OF_THEIR_OWN} == {*every_command()}


@pytest.mark.parametrize("words", RUNS, ids=lambda words: " ".join(words) or "opsctl")
def test_no_command_shows_a_secret_or_sends_one_astray(place: Place, words: Arguments) -> None:
    runner, seen = InProcess(), {}
    (place.folder / "verdict.json").write_text('{"targets": []}')
    for index, arguments in enumerate(RUNS[words]):
        for verbose in ((), ("-vv",)):
            new = f"{'-'.join(words)}-{index}{len(verbose)}"
            filled = [a.replace("{bad}", place.bad).replace("{new}", new) for a in arguments]
            ran = runner.run(*verbose, *words, *filled, env=place.environment, cwd=place.folder)
            seen[new] = (ran.returncode, ran.stdout + ran.stderr)

    assert {new: said for new, (_, said) in seen.items() if MARK in said} == {}
    assert [new for new, (code, _) in seen.items() if code == 70] == []
    assert [new for new, (_, said) in seen.items() if "\x1b" in said] == []
    assert place.thief.asked == []
    # Alertmanager's configuration holds webhooks by nature
    pagers = ("alertmanager.yaml", "alertmanagerconfig.yaml")
    assert [name for name, data in unpacked(place.written(but=pagers)) if MARK in data] == []
    for path in place.folder.rglob("alertmanager*.yaml"):
        assert path.stat().st_mode & 0o007 == 0


def unpacked(files: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """Names and texts of files, and of what is packed in them."""
    for name, data in files.items():
        if name.endswith(".tar.gz"):
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                members = {m.name: archive.extractfile(m) for m in archive.getmembers()}
                inner = {f"{name}/{n}": f.read() for n, f in members.items() if f is not None}
            yield from unpacked(inner)
        elif name.endswith(".gz"):
            yield name, gzip.decompress(data).decode(errors="replace")
        else:
            yield name, data.decode(errors="replace")


PAGES_OF_THE_SIDECAR = ("/", "/metrics", "/readyz", "/livez", "/api/v1/status", "/api/v1/recording")


@pytest.mark.parametrize(
    "words",
    [
        ("exporter", "run"),
        ("-vv", "exporter", "run"),
        ("-vv", "exporter", "supervise", "--", "sleep", "60"),
    ],
    ids=["run", "run, verbose", "supervise"],
)
def test_no_page_of_a_sidecar_shows_a_secret_nor_its_log_nor_its_processes(
    place: Place, words: tuple[str, ...], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            Opsctl.command(*words),
            stdout=out,
            stderr=out,
            env=os.environ | place.environment,
            cwd=place.folder,
        )
    try:
        wait_for(
            lambda: re.search(r"(http://\S+)/metrics, ", log.read_text()) is not None,
            timeout_s=30,
            what="a sidecar",
            said=log.read_text,
        )
        found = re.search(r"(http://\S+)/metrics, ", log.read_text())
        assert found is not None
        url = found[1]
        wait_for(is_everything_tried(url), timeout_s=30, what="reads", said=log.read_text)
        # the page's first part is made when somebody looks
        http_get(url)
        time.sleep(1.0)
        pages = {path: http_get(f"{url}{path}")[1] for path in PAGES_OF_THE_SIDECAR}
        lines = {str(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in family(process.pid)}
    finally:
        process.terminate()
        process.wait(timeout=30)

    seen = {**pages, **lines, "log": log.read_text(), **dict(unpacked(place.written()))}
    seen = {name: text for name, text in seen.items() if not name.startswith("built/")}
    assert {name: near(text) for name, text in seen.items() if MARK in text} == {}
    assert place.thief.asked == []


def is_everything_tried(url: str) -> Callable[[], bool]:
    """Whether a sidecar has read each of its targets at least twice."""

    def tried() -> bool:
        page = http_get(f"{url}/metrics")[1]
        counts = re.findall(r"^opsctl_target_reads_total{.*} (\d+)", page, re.MULTILINE)
        names = set(re.findall(r'^opsctl_target_up{.*target="(\w+)"', page, re.MULTILINE))
        return len(names) == 4 and sum(int(float(count)) for count in counts) >= 8

    return tried


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


def near(text: str) -> str:
    """What stands around the first canary."""
    at = text.index(MARK)
    return text[max(0, at - 200) : at + 40]


def test_no_page_of_a_replay_shows_a_secret(place: Place, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            Opsctl.command("-vv", "replay", RECORDING, "--port", "0"),
            stdout=out,
            stderr=out,
            env=os.environ | place.environment,
            cwd=place.folder,
        )
    try:
        wait_for(lambda: "http://" in log.read_text(), timeout_s=30, what="a replay")
    finally:
        process.terminate()
        process.wait(timeout=30)

    assert MARK not in log.read_text()

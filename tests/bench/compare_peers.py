"""
The recorded incidents, each diagnosed live by opsctl and by two peers on the same port.

Each recording is replayed up to the end of its incident. All tools look at the same dozen seconds of
it, each in its own one-shot mode: `vllm-doctor diagnose` (a few reads), `inferpilot inspect` (two
scrapes 5 s apart), `opsctl diagnose` (ten seconds). `opsctl with history` diagnoses the recording
itself, which is what a sidecar would have had; no peer takes one. Peers run in environments of their
own under build/peers/.

A peer is right when one of its findings names the cause, partial when one is a true symptom of it
(compare_peers.yaml); it may say anything else besides. opsctl is right when all roots that it names
are true, partial when it names another one too, or only a symptom.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.table import ROOT, Row, report
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.recording import read_recording, save_recording

PEERS = {"vllm-doctor": "0.6.0", "inferpilot": "0.1.0"}
TOOLS = ("opsctl live", "opsctl with history", *PEERS)
RECORDINGS = ROOT / "tests" / "recordings"
HOMES = ROOT / "build" / "peers"
OPSCTL = str(Path(sys.executable).with_name("opsctl"))
MAPPING: dict[str, dict[str, dict[str, list[str]]]] = yaml.safe_load(
    Path(__file__).with_name("compare_peers.yaml").read_text()
)

LOOK_S = 22.0
"""The part of the incident that tools may look at: ten seconds, and what a busy machine adds."""

SHORTEST_LOOK_S = 15.0
"""Of a shorter incident the seconds before it are looked at too."""

LEAD_S = 3.0
"""What is replayed before, while the replay starts."""

AT_ONCE = 3
"""Replays at a time."""

TRIES = 3
"""A tool that outlasts the replay has looked at nothing in the end: that is measured again."""

SHOWN = 44


@dataclass(frozen=True)
class Case:
    """One recording, the part of its incident to look at, and what was really going on."""

    name: str
    path: Path
    begin: float
    until: float
    truth: frozenset[str]
    accepted: frozenset[str]


@dataclass(frozen=True)
class Answer:
    """What a tool said, in its own words, and how right that is."""

    words: str
    grade: str


def truth_of(name: str) -> dict[str, Any] | None:
    """The entry of a recording (`third/n-fanout`) in the manifest of its folder, if it has one."""
    path = RECORDINGS / name
    manifest: dict[str, dict[str, Any]] = yaml.safe_load(
        path.with_name("manifest.yaml").read_text()
    )
    return manifest.get(path.name)


def cases() -> Iterator[Case]:
    """All recordings whose truth is written down."""
    for path in sorted(RECORDINGS.rglob("*.jsonl.gz")):
        name = str(path.relative_to(RECORDINGS)).removesuffix(".jsonl.gz")
        entry = truth_of(name)
        if entry is None:
            print(f"{name} is left out: its manifest has no entry")
            continue
        phases = entry["phase_starts"]
        until = phases.get("recovery", phases["end"])
        yield Case(
            name=name,
            path=path,
            begin=max(until - LOOK_S, min(phases.get("incident", 0.0), until - SHORTEST_LOOK_S)),
            until=until,
            truth=frozenset(entry["truth"]),
            accepted=frozenset(entry["truth"]) | frozenset(entry.get("also", ())),
        )


def trimmed(case: Case, folder: Path) -> Path:
    """What is looked at, as a recording of its own."""
    observed = [o for o in read_recording(case.path) if o.t <= case.until]
    start = case.begin - LEAD_S
    part = [o for o in observed if o.t >= start]
    if not any(o.kind == "metrics" for o in part):
        # it died before: a replay begins with a page
        last = [o for o in observed if o.kind == "metrics"][-1]
        part.insert(0, Observation(start, last.target, last.kind, last.data))
    path = folder / f"{case.name.replace('/', '-')}.jsonl.gz"
    save_recording(path, part)
    return path


class TooSlow(Exception):
    """The replay ended before the tools did."""


@contextmanager
def replayed(path: Path) -> Iterator[str]:
    """
    A replay, once it has answered: its URL.

    Raises:
        TooSlow: It was over before it was done with.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [OPSCTL, "replay", str(path), "--port", str(port)],
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=1):  # noqa: S310
                    break
            except OSError:
                time.sleep(0.05)
        time.sleep(LEAD_S)
        yield url
        if process.poll() is not None:
            raise TooSlow(path.name)
    finally:
        process.terminate()
        process.wait()


def said(*command: str) -> tuple[int, str, str]:
    """Run a tool: exit code, stdout, stderr. It keeps its files to itself."""
    environment = os.environ | {"HOME": str(HOMES), "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    return done.returncode, done.stdout, done.stderr


def grade_peer(peer: str, findings: Sequence[str], case: Case) -> str:
    """Right, partial or wrong, by the reviewed mapping."""
    rules = [MAPPING[peer][finding] for finding in findings]
    named = {mode for rule in rules for mode in rule.get("names", ())}
    symptoms = {mode for rule in rules for mode in rule.get("symptom_of", ())}
    if not case.truth:
        return "right" if not findings or named == {"healthy"} else "wrong"
    if named & case.accepted:
        return "right"
    return "partial" if symptoms & case.accepted else "wrong"


def ask_vllm_doctor(url: str, case: Case) -> Answer:
    """Its findings, worst first as it prints them."""
    peer = "vllm-doctor"
    command = str(HOMES / peer / "bin" / peer)
    code, out, err = said(command, "diagnose", f"{url}/metrics", "--output", "json")
    if code != 0:
        return Answer(_last_line(err or out), grade_peer(peer, ["unreachable"], case))
    data = json.loads(out)
    found = {c["id"]: c["finding"] for c in data["checks"] if c.get("finding")}
    words = "; ".join(finding["title"] for finding in found.values()) or f"Health: {data['health']}"
    return Answer(words, grade_peer(peer, list(found), case))


def ask_inferpilot(url: str, case: Case) -> Answer:
    """Its one verdict."""
    peer = "inferpilot"
    command = str(HOMES / peer / "bin" / peer)
    code, out, err = said(command, "inspect", "--url", url, "--interval", "5", "--json")
    if code != 0:
        return Answer(_last_line(err or out), grade_peer(peer, ["unreachable"], case))
    verdict = str(json.loads(out)["verdict"])
    return Answer(verdict, grade_peer(peer, [verdict], case))


def ask_opsctl(arguments: Sequence[str], case: Case) -> Answer:
    """Its root causes."""
    _, out, err = said(OPSCTL, "diagnose", *arguments, "--output", "json")
    if not out:
        return Answer(_last_line(err), "wrong")
    target = json.loads(out)["targets"][0]
    roots = {cause["id"] for cause in target["causes"] if cause["role"] == "root"}
    words = ", ".join(sorted(roots)) or str(target["verdict"])
    if not case.truth:
        return Answer(words, "right" if target["verdict"] == "healthy" else "wrong")
    if not target["causes"] and "refused" in target["summary"]:
        return Answer("unreachable", grade_peer("opsctl", ["unreachable"], case))
    if roots & case.accepted:
        return Answer(words, "right" if roots <= case.accepted else "partial")
    return Answer(words, "partial" if target["causes"] and not roots else "wrong")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip(" ╭╮╰╯─│")]
    return lines[-1].strip("│ ") if lines else "(nothing)"


def compare(case: Case) -> dict[str, Answer] | None:
    """All tools on one case; again when the machine was too slow for it, at last None."""
    for _ in range(TRIES):
        try:
            return compare_once(case)
        except TooSlow:
            continue
    return None


def compare_once(case: Case) -> dict[str, Answer]:
    """All tools on one case; the live ones at the same time."""
    with tempfile.TemporaryDirectory() as folder, replayed(trimmed(case, Path(folder))) as url:
        with ThreadPoolExecutor(3) as pool:
            live = {
                "opsctl live": pool.submit(ask_opsctl, [url], case),
                "vllm-doctor": pool.submit(ask_vllm_doctor, url, case),
                "inferpilot": pool.submit(ask_inferpilot, url, case),
            }
        answers = {tool: future.result() for tool, future in live.items()}
    past = ["--recording", str(case.path), "--at", f"{case.until:.3f}"]
    answers["opsctl with history"] = ask_opsctl(past, case)
    return {tool: answers[tool] for tool in TOOLS}


def install() -> None:
    """Each peer in an environment of its own."""
    for peer, version in PEERS.items():
        home = HOMES / peer
        if not (home / "bin" / peer).exists():
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, f"{peer}=={version}"], check=True)


def main() -> None:
    """Measure, print the table, write the totals."""
    install()
    wanted = [case for case in cases() if not sys.argv[1:] or case.name in sys.argv[1:]]
    measured = 0
    totals: dict[str, Counter[str]] = {tool: Counter() for tool in TOOLS}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for case, answers in zip(wanted, pool.map(compare, wanted), strict=True):
            if answers is None:
                print(f"\n{case.name} is left out: this machine is too slow for it")
                continue
            measured += 1
            print(f"\n{case.name}  truth: {', '.join(sorted(case.truth)) or 'healthy'}")
            for tool, answer in answers.items():
                totals[tool][answer.grade] += 1
                words = answer.words if len(answer.words) <= SHOWN else answer.words[:SHOWN] + "…"
                print(f"  {tool:20} {answer.grade:8} {words}", flush=True)
    print(f"\n{'':22}{'right':>8}{'partial':>8}{'wrong':>8}  of {measured}")
    for tool, counts in totals.items():
        print(f"  {tool:20}" + "".join(f"{counts[g]:8}" for g in ("right", "partial", "wrong")))
    rows = [
        Row(f"{tool}: {grade}", totals[tool][grade], "of all", "recordings", measured)
        for tool in TOOLS
        for grade in ("right", "partial", "wrong")
    ]
    report("compare_peers", f"{measured} recordings, one run each", rows)


if __name__ == "__main__":
    main()

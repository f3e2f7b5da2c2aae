"""The whole way of a page: Prometheus, Alertmanager and an emulated SNS, from what opsctl builds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from commands import Opsctl
from ports import reserve_port

from parts.alertmanager import RealAlertmanager
from parts.emulated_aws import EmulatedAws, Subscriber
from parts.prometheus import RealPrometheus


@dataclass(frozen=True)
class Paging:
    """A running chain; ``config`` is the opsctl.yaml that it was built from."""

    config: Path
    rules: Path
    prometheus: RealPrometheus
    alertmanager: RealAlertmanager
    aws: EmulatedAws
    on_call: Subscriber


@contextmanager
def paging(
    folder: Path,
    part: Callable[[str], Path],
    opsctl: Opsctl,
    settings: Mapping[str, Any],
    *,
    scale: str,
    scrape: Mapping[str, Sequence[str]],
    topic: str = "llm-page",
) -> Iterator[Paging]:
    """
    Build the alarms of a configuration and start everything behind them.

    Args:
        folder: For files, data and logs.
        part: The fixture.
        opsctl: The fixture.
        settings: The configuration, without ``alarms``' addresses.
        scale: Of every window.
        scrape: Job to targets of Prometheus.
        topic: Name of the topic that pages.
    """
    aws = EmulatedAws(folder, reserve_port())
    am_port, prometheus_port = reserve_port(), reserve_port()
    config = folder / "opsctl.yaml"
    rules = folder / "alarms"
    aws.start()
    try:
        arn = aws.topic(topic)
        addresses = {
            "page_topic": arn,
            "ticket_topic": aws.topic("llm-ticket"),
            "api_url": aws.url,
            "prometheus_url": f"http://127.0.0.1:{prometheus_port}",
            "alertmanager_url": f"http://127.0.0.1:{am_port}",
        }
        alarms = {**addresses, **settings.get("alarms", {})}
        config.write_text(yaml.safe_dump({**settings, "alarms": alarms}), encoding="utf-8")
        built = opsctl.run(
            *("--config", str(config), "alarms", "build", "--out", str(rules), "--scale", scale)
        )
        assert built.returncode == 0, built.stderr
        alertmanager = RealAlertmanager(
            part("alertmanager"), rules / "alertmanager.yaml", folder, am_port, aws.env
        )
        prometheus = RealPrometheus(
            part("prometheus"),
            folder / "prometheus",
            prometheus_port,
            scrape=scrape,
            rules=[rules / "rules.yaml"],
            alertmanager=alertmanager.address,
        )
        alertmanager.start()
        try:
            prometheus.start()
            yield Paging(config, rules, prometheus, alertmanager, aws, aws.subscriber(arn))
        finally:
            prometheus.stop()
            alertmanager.stop()
    finally:
        aws.stop()

"""Where a page leads: the runbook, the board, and the command to type."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from vllm_opsctl.alarms.alerts import Command, Per
from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.exporter.config import Config, bracketed, split_listen
from vllm_opsctl.exporter.identity import identity_of

_TARGET = "{{ $labels.target }}"
_MODEL = "{{ $labels.model }}"


@dataclass(frozen=True, slots=True)
class Links:
    """
    Links and commands of alerts.

    Args:
        config: What is configured of them.
        source: Where the rules read.
    """

    config: Config
    source: Source

    def annotations(
        self,
        per: Per,
        modes: tuple[str, ...],
        objective: str | None,
        command: Command = "diagnose",
    ) -> dict[str, str]:
        """
        The annotations of one alert.

        Args:
            per: What the alert is about: it says which labels there are.
            modes: Failure modes behind it.
            objective: The burning objective, if it is about one.
            command: What to type.
        """
        found = {}
        alarms = self.config.alarms
        if alarms.runbook_url is not None:
            found["runbook_url"] = (
                f"{alarms.runbook_url.rstrip('/')}/{modes[0] if modes else 'index'}"
            )
        if alarms.dashboard_url is not None and per != "none":
            found["dashboard_url"] = self._board(alarms.dashboard_url, per, objective)
        found["command"] = {
            "diagnose": self.command(per),
            "targets": self._targets(),
            "drill": "opsctl alarms test" + ("" if self.source == "sidecar" else " --from vllm"),
        }[command]
        return found

    def _board(self, url: str, per: Per, objective: str | None) -> str:
        # a replica's alert has no model in every source; its board starts unfiltered then
        variables = [f"var-objective={objective}"] if objective is not None else []
        if per in ("model", "engine"):
            variables.append(f"var-model={_MODEL}")
        if per in ("replica", "engine"):
            variables.append(f"var-target={_TARGET}")
        free = identity_of(self.config).free
        variables += [f"var-{name}={quote(value, safe='')}" for name, value in free]
        return f"{url}{'&' if '?' in url else '?'}{'&'.join(variables)}"

    def command(self, per: Per) -> str:
        """The command that names the root cause of what an alert tells."""
        alarms = self.config.alarms
        if self.source == "sidecar":
            target = f" {_TARGET}" if per in ("engine", "replica") else ""
            return f"opsctl diagnose --sidecar {self.sidecar_url}{target}"
        if alarms.prometheus_url is not None:
            own = {
                "engine": f'instance="{_TARGET}"',
                "replica": f'instance="{_TARGET}"',
                "model": f'model_name="{_MODEL}"',
                "none": "",
            }[per]
            matchers = ",".join(filter(None, (alarms.match, own)))
            match = f" --match '{{{matchers}}}'" if matchers else ""
            return f"opsctl diagnose --prometheus {alarms.prometheus_url}{match}"
        if per in ("engine", "replica"):
            return f"opsctl diagnose http://{_TARGET}"
        return self._targets()

    def _targets(self) -> str:
        """Without anything between: the servers themselves."""
        urls = [target.url for target in self.config.targets if not target.is_tap_only]
        return f"opsctl diagnose {' '.join(urls) or 'http://HOST:8000'}"

    @property
    def sidecar_url(self) -> str:
        """The sidecar's address; the one that it listens on when none is configured."""
        if self.config.alarms.sidecar_url is not None:
            return self.config.alarms.sidecar_url
        host, port = split_listen(self.config.exporter.listen)
        reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        return f"http://{bracketed(reached)}:{port}"

    def notices(self) -> list[str]:
        """What pages could lead to and does not, one line each."""
        alarms = self.config.alarms
        found = []
        if alarms.runbook_url is None:
            found.append("alarms.runbook_url is not set: no alert links to its runbook page")
        if alarms.dashboard_url is None:
            found.append("alarms.dashboard_url is not set: no alert links to a board")
        if self.source == "sidecar" and alarms.sidecar_url is None:
            found.append(
                f"alarms.sidecar_url is not set: commands in pages name {self.sidecar_url}, "
                "which works on the sidecar's host"
            )
        if self.source == "vllm" and alarms.prometheus_url is None:
            found.append(
                "alarms.prometheus_url is not set: commands in pages look at the servers as they are "
                "then, not at the past"
            )
        return found

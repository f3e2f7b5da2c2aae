"""Who makes verdicts for commands, and how one is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_opsctl.cli.paragraphs import wrapped
from vllm_opsctl.cli.text import render_markdown, render_text
from vllm_opsctl.exporter.bundle import Asked
from vllm_opsctl.exporter.config_load import LoadedConfig
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.runbooks.diagnosis import diagnose_target
from vllm_opsctl.runbooks.fleet import Question, diagnose_fleet
from vllm_opsctl.runbooks.load import Library
from vllm_opsctl.runbooks.verdict import TargetVerdict, Verdict

if TYPE_CHECKING:
    from vllm_opsctl.cli.alarm_message import AlarmMessage


@dataclass(frozen=True, slots=True)
class Doctor:
    """What every verdict of one command shares."""

    library: Library
    loaded: LoadedConfig
    window_s: float

    def verdict(self, observations: Sequence[Observation], asked: Asked) -> Verdict:
        """The verdict on all targets that were asked about, each compared with its peers."""
        by_target: dict[str, list[Observation]] = {name: [] for name in asked.targets}
        for observation in observations:
            if observation.target in by_target:
                by_target[observation.target].append(observation)
        question = Question(
            source=asked.source, at=asked.at, window_s=asked.window_s, now=asked.now
        )
        url = self.loaded.config.alarms.runbook_url
        return diagnose_fleet(by_target, self.library, question, runbook_url=url)

    def target(self, name: str, observations: Sequence[Observation], asked: Asked) -> TargetVerdict:
        """The verdict on one target."""
        return diagnose_target(
            name,
            [o for o in observations if o.target == name],
            self.library,
            source=asked.source,
            at=asked.at,
            window_s=asked.window_s,
            now=asked.now,
            runbook_url=self.loaded.config.alarms.runbook_url,
        )


def rendered(
    verdict: Verdict, output: str, *, show_features: bool, alarm: AlarmMessage | None = None
) -> str:
    """A verdict as text, json or markdown, below the alarm that asked for it."""
    if output == "json":
        above = {"alarm": alarm.to_json()} if alarm is not None else {}
        return json.dumps({**verdict.to_json(), **above}, indent=2, ensure_ascii=False)
    render = render_markdown if output == "markdown" else render_text
    text = render(verdict, show_features=show_features)
    if alarm is None:
        return text
    head = wrapped(alarm.headline(), indent="  ", first="Alarm: ")
    return f"{head}\n\n{text}"

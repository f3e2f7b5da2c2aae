"""
A recording against the alarms: which would have gone off, and when.

The recording's pages become the data that the sidecar would have published; the template's alarms are judged
on them. Recordings are short and windows are long: with a scale of 1/60 each second of one is told as
a minute, so guards on events stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from vllm_opsctl.alarms.cloudwatch.definitions import read_definitions
from vllm_opsctl.alarms.cloudwatch.metrics import Metrics
from vllm_opsctl.alarms.cloudwatch.models import PARAMETER
from vllm_opsctl.alarms.cloudwatch.timeline import Timeline
from vllm_opsctl.errors import BadPage, InputFileError
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.engine import PageSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.sinks.cloudwatch.interval import Labels, data_of


@dataclass(frozen=True, slots=True)
class Notified:
    """
    One notification that an alarm went off.

    Args:
        t: Unix seconds in the recording.
        after_s: Seconds since its start.
        alarm: Name of the alarm.
        topic: ARN of its topic, or the topic's id in the template.
        description: What the notification says.
    """

    t: float
    after_s: float
    alarm: str
    topic: str
    description: str

    @property
    def notify(self) -> str:
        """What it does, page or ticket: the last word of its name's first part."""
        return self.alarm.partition("/")[0].rpartition(" ")[2]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """
    What a recording's alarms would have been.

    Args:
        seconds: Length of the recording.
        models: Models in it.
        strangers: Those of them that no alarm is for.
        notified: Every notification that an alarm went off, in order.
    """

    seconds: float
    models: tuple[str, ...]
    strangers: tuple[str, ...]
    notified: tuple[Notified, ...]


def rehearse(
    config: Config,
    template: str,
    observations: Sequence[Observation],
    *,
    scale: Fraction = Fraction(1),
) -> Rehearsal:
    """
    Judge the alarms of a template on a recording.

    Args:
        config: What the template was built of.
        template: Its text.
        observations: The recording, in order.
        scale: How much shorter than they are minutes and intervals are in the recording.

    Raises:
        InputFileError: There is no page in it.
    """
    pages = _pages(observations)
    models = dict.fromkeys(sample.key.model for page in pages for sample in page.engines)
    start, end = observations[0].t, observations[-1].t
    interval_s = config.exporter.cloudwatch.interval
    metrics = Metrics(config.exporter.cloudwatch.namespace, late_s=interval_s)
    for target in dict.fromkeys(page.target for page in pages):
        _publish(config, metrics, [p for p in pages if p.target == target], start, scale)
    told_s = (end - start) / float(scale)
    found: dict[tuple[float, str], Notified] = {}
    watched: set[str] = set()
    for model in models:
        definitions = read_definitions(template, {PARAMETER: model})
        timeline = Timeline(definitions.metric_alarms, definitions.composites, metrics)
        timeline.run(interval_s, told_s)
        watched |= definitions.values_of("Model")
        for t, alarm, topic in definitions.topic_of(timeline):
            after_s = t * float(scale)
            found[t, alarm] = Notified(
                start + after_s, after_s, alarm, topic, definitions.descriptions[alarm]
            )
    return Rehearsal(
        end - start,
        tuple(models),
        tuple(model for model in models if model not in watched),
        tuple(found[key] for key in sorted(found)),
    )


def _pages(observations: Sequence[Observation]) -> list[PageSample]:
    found = []
    for one in observations:
        if one.kind == "metrics":
            try:
                found.append(read_page(one.text, t=one.t, target=one.target))
            except BadPage:
                # as for the sidecar: nothing was read then
                continue
    if not found:
        raise InputFileError("the recording has no page of metrics; alarms have nothing to judge")
    return found


def _publish(
    config: Config, metrics: Metrics, pages: Sequence[PageSample], start: float, scale: Fraction
) -> None:
    """Put the pages of one target into intervals, as its sidecar would."""
    interval_s = config.exporter.cloudwatch.interval
    length_s = interval_s * float(scale)
    intervals: dict[int, list[PageSample]] = {}
    for page in pages:
        intervals.setdefault(int((page.t - start) // length_s), []).append(page)
    before = None
    for number, some in sorted(intervals.items()):
        metrics.add(
            data_of(
                before,
                some,
                t=number * interval_s,
                labels=Labels(config.service.name, None),
                objectives=config.objectives,
            )
        )
        before = some[-1]

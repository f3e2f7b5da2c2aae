"""
Whether rules read the series of their own service, and no other's.

The sidecar's series say whose they are; vLLM's own do not, so rules on these need ``alarms.match`` as soon as
their Prometheus scrapes anybody else's servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from vllm_opsctl.alarms.instant import instant
from vllm_opsctl.alarms.lint_finding import Finding
from vllm_opsctl.alarms.prometheus.conventions import TARGET_RATIO, Scope
from vllm_opsctl.alarms.vocabulary import Vocabulary
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import SERVICE, Identity, identity_of
from vllm_opsctl.exporter.matchers import Matcher
from vllm_opsctl.exporter.own_series import BUILD_INFO

_RENAMED = "exported_"
"""What Prometheus puts before a page's label when the target has one of that name."""

_TELLING = ("cluster", "environment", "env", "region", "namespace", "job")
"""Labels of targets that usually tell fleets apart, the widest first."""

_SHOWN = 5


def identity_findings(
    config: Config, names: Vocabulary, prometheus: str | None
) -> Iterator[Finding]:
    """
    What is wrong with the service's identity.

    Args:
        config: With the service, its labels and ``alarms.match``.
        names: Of the source that rules would read.
        prometheus: Base URL of the Prometheus that would evaluate them; None to ask nobody.

    Raises:
        SourceError: The Prometheus does not answer.
    """
    if names.source == "vllm":
        yield from _match(config, names, prometheus)
    elif prometheus is not None:
        yield from _sidecars(config, identity_of(config), prometheus)


# -- vLLM's own series -----------------------------------------------------------------------------


def _match(config: Config, names: Vocabulary, prometheus: str | None) -> Iterator[Finding]:
    match = config.alarms.match
    if prometheus is None:
        if match is None:
            yield Finding(
                "alarms.match",
                "not set: the rules read every vLLM server that Prometheus scrapes. If any of them belongs "
                "to another service, environment or cluster, set label matchers such as "
                "'{namespace=\"llm\"}'",
                is_error=False,
            )
        return
    read = _servers(names, prometheus)
    if match is not None and not read:
        yield Finding(
            "alarms.match",
            f"{{{match}}} matches no vLLM server of {prometheus}; correct it, or scrape them",
        )
    if match is None:
        yield from _strangers(config, read, prometheus)


def _servers(names: Vocabulary, prometheus: str) -> list[Mapping[str, str]]:
    labels = ", ".join((*_TELLING, "model_name"))
    running = names.selector("requests_running")
    return [found for found, _ in instant(prometheus, f"group by ({labels}) ({running})")]


def _strangers(
    config: Config, read: Sequence[Mapping[str, str]], prometheus: str
) -> Iterator[Finding]:
    """Servers that are probably not the service's."""
    seen: list[str] = []
    example = 'namespace="llm"'
    for label in reversed(_TELLING):
        values = sorted({one[label] for one in read if one.get(label)})
        if len(values) > 1:
            seen.insert(0, f"{label} {_listed(values)}")
            example = str(Matcher(label, "=~", "|".join(map(re.escape, values[:_SHOWN]))))
    ours = {model for target in config.targets for model in target.models}
    ours |= {one.model for one in config.objectives if one.model is not None}
    others = sorted({one["model_name"] for one in read if one.get("model_name")} - ours)
    if ours and others:
        seen.append(f"models that no target names, {_listed(others)}")
    identity = identity_of(config)
    rows = instant(prometheus, f"group by ({', '.join(identity.names)}) ({TARGET_RATIO})")
    fleets = {_text(row, identity) for row, _ in rows if _is_another(row, identity)}
    if fleets:
        seen.append(f"rules of {_listed(sorted(fleets))}")
    if seen:
        yield Finding(
            "alarms.match",
            f"not set, and {prometheus} seems to have more than one fleet ({'; '.join(seen)}): whatever "
            f"fails in any of them pages as {identity}. Name its own servers; if they are all its own, write "
            f"'{{{example}}}'",
        )


# -- the sidecar's ---------------------------------------------------------------------------------


def _sidecars(config: Config, identity: Identity, prometheus: str) -> Iterator[Finding]:
    labels = ", ".join((*identity.names, *(f"{_RENAMED}{name}" for name in identity.names)))
    rows = [found for found, _ in instant(prometheus, f"group by ({labels}) ({BUILD_INFO})")]
    wanted = identity.labels()
    renamed = {
        name
        for row in rows
        if row.get(f"{_RENAMED}{SERVICE}", row.get(SERVICE)) == identity.service
        for name, value in wanted.items()
        if row.get(f"{_RENAMED}{name}") == value != row.get(name)
    }
    if renamed:
        names = _listed(sorted(renamed))
        yield Finding(
            "service.name" if SERVICE in renamed else "exporter.labels",
            f"{prometheus} renamed the sidecar's {names} to {_RENAMED}…, because its target has a label of "
            "that name too, and the rules do not find it. Set honor_labels: true in the scrape configuration "
            "of the sidecars (honorLabels: true in a ServiceMonitor or PodMonitor)",
        )
        return
    yield from _other_labels(identity, prometheus)
    # what names another service is none of ours
    unlabelled = [
        row
        for row in rows
        if row.get(SERVICE) in (None, "", identity.service)
        and any(not row.get(name) for name in wanted)
    ]
    if unlabelled and not config.alarms.read_unlabelled:
        missing = sorted({name for row in unlabelled for name in wanted if not row.get(name)})
        old = " (0.1 never did)" if SERVICE in missing else ""
        yield Finding(
            "alarms.read_unlabelled",
            f"some sidecars send no label {_listed(missing)}{old}, and the rules do not read them: upgrade "
            "or configure them, and set read_unlabelled: true until three days after that",
        )
    if config.alarms.read_unlabelled and not unlabelled:
        yield Finding(
            "alarms.read_unlabelled",
            f"every sidecar that {prometheus} scrapes says whose it is; remove this three days after the "
            "last one was upgraded",
            is_error=False,
        )
    has_ours = any(all(row.get(k) == v for k, v in wanted.items()) for row in rows)
    named = sorted({_text(row, identity) for row in rows if row.get(SERVICE)})
    if named and not has_ours:
        yield Finding(
            "service.name",
            f"{prometheus} scrapes no sidecar of {identity}, but of {_listed(named)}; rules and sidecars "
            "need the same service.name and exporter.labels",
        )


def _other_labels(identity: Identity, prometheus: str) -> Iterator[Finding]:
    """Fleets of the same service with other labels: matchers cannot keep them apart."""
    selector = Scope(Identity(identity.service)).selector(TARGET_RATIO)
    known = {*identity.names, "__name__", "objective"}
    more = {
        name
        for found, _ in instant(prometheus, f"group without (objective) ({selector})")
        for name in found
        if name not in known
    }
    if more:
        yield Finding(
            "exporter.labels",
            f"{prometheus} has rules of {identity.service} with the label {_listed(sorted(more))}. If they "
            "are another fleet's, the rules of this one read its series too: give every fleet of a service "
            "the same labels, or a service.name of its own",
            is_error=False,
        )


def _is_another(row: Mapping[str, str], identity: Identity) -> bool:
    """Whether a series is of another fleet; one of before a free label was added is not."""
    wanted = identity.labels()
    return row.get(SERVICE) != identity.service or any(
        row.get(k, v) != v for k, v in wanted.items()
    )


def _text(row: Mapping[str, str], identity: Identity) -> str:
    free = tuple((name, row[name]) for name in identity.names[1:] if row.get(name))
    return str(Identity(row.get(SERVICE, ""), free))


def _listed(values: Sequence[str]) -> str:
    rest = len(values) - _SHOWN
    return ", ".join(values[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")

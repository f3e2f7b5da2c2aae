"""
Whose series the generated unit tests are of: the service's own, and those of a made-up second service.

The second service has the same models, replicas and objectives under another identity, so whatever one
service's rules see of the other shows, and so does a series that both record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_opsctl.alarms.fleet import MODEL, REPLICAS
from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.alarms.rules import Rulebook, build_rules
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import Identity, identity_of
from vllm_opsctl.exporter.matchers import Matcher, example_labels, matchers_in

_SECOND = "second-service"
_LONGEST = 100
"""Characters of a service that its second one begins with: a service may have 128."""


@dataclass(frozen=True, slots=True)
class Service:
    """
    A service of the unit tests.

    Args:
        book: Its rules.
        labels: What its series carry.
        model: Served name where an objective names none.
    """

    book: Rulebook
    labels: Mapping[str, str]
    model: str

    @property
    def identity(self) -> Identity:
        """The labels of its alerts."""
        return identity_of(self.book.links.config)


def own_service(book: Rulebook) -> Service | None:
    """
    The service of the rules.

    Returns:
        None when no labels are known that ``alarms.match`` accepts.
    """
    labels = _labels(book.links.config, book.names.source)
    if labels is None:
        return None
    return Service(book, labels, labels.pop("model_name", MODEL))


def second_service(book: Rulebook) -> Service | None:
    """
    A second service in the same Prometheus; it has the first of the objectives alone.

    Returns:
        None where nothing tells it apart: vLLM's own series without an ``alarms.match`` that it could miss.
    """
    config, names = book.links.config, book.names
    # one name begins with the other, which a pattern without an end would take for the same
    name = f"{config.service.name[:_LONGEST]}-{_SECOND}"
    changed: dict[str, object] = {
        "service": config.service.model_copy(update={"name": name}),
        "objectives": tuple(one.objective for one in book.indicators[:1]),
    }
    if names.source == "vllm":
        match = _other_match(config)
        if match is None:
            return None
        changed["alarms"] = config.alarms.model_copy(update={"match": match})
    other = build_rules(
        config.model_copy(update=changed), names.source, version=names.version, clock=names.clock
    )
    return own_service(other)


def _labels(config: Config, source: Source) -> dict[str, str] | None:
    if source == "sidecar":
        return identity_of(config).labels()
    matchers = matchers_in(config.alarms.match) if config.alarms.match else ()
    # the replicas have names of their own
    if any(
        not one.matches(name) for one in matchers for name in REPLICAS if one.label == "instance"
    ):
        return None
    found = example_labels(matchers)
    if found is not None:
        found.pop("instance", None)
    return found


def _other_match(config: Config) -> str | None:
    """Matchers of servers that ``alarms.match`` does not accept."""
    matchers = matchers_in(config.alarms.match) if config.alarms.match else ()
    known = example_labels(matchers) or {}
    for one in matchers:
        if one.label in ("model_name", "instance") or not known.get(one.label):
            continue
        other = f"{known[one.label]}-{_SECOND}"
        if not one.matches(other):
            rest = [str(two) for two in matchers if two.label != one.label]
            return ",".join((str(Matcher(one.label, "=", other)), *rest))
    return None

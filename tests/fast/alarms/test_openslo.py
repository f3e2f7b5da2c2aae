"""Objectives as OpenSLO: out and in again, and those of others."""

from __future__ import annotations

import doctest
import re

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from vllm_opsctl.alarms import openslo, openslo_query, openslo_read
from vllm_opsctl.alarms.openslo import Header, ServiceSpec, SliSpec, SloSpec, export_openslo
from vllm_opsctl.alarms.openslo_read import objectives_section, read_openslo
from vllm_opsctl.errors import ConfigError, InputFileError
from vllm_opsctl.exporter.config import SLI_CONCEPTS, Config, Objective
from vllm_opsctl.exporter.yaml_text import read_yaml

SPECS: dict[str, type[BaseModel]] = {"Service": ServiceSpec, "SLI": SliSpec, "SLO": SloSpec}

SLUGS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,80}", fullmatch=True)


@st.composite
def objectives(draw: st.DrawFn) -> Objective:
    sli = draw(st.sampled_from(["availability", *SLI_CONCEPTS]))
    threshold = None if sli == "availability" else draw(st.floats(1e-6, 86400.0))
    return Objective.model_validate(
        {
            "name": draw(SLUGS),
            "sli": sli,
            "threshold": threshold,
            "target": draw(st.floats(0, 1, exclude_max=True)),
            "model": draw(st.none() | st.text(max_size=80)),
            "notify": draw(st.sampled_from(["page", "ticket"])),
            "bucket_policy": draw(st.sampled_from(["exact", "stricter", "looser"])),
            "description": draw(st.none() | st.text(max_size=200)),
        }
    )


CONFIGS = st.builds(
    lambda chosen, service: Config.model_validate(
        {"objectives": chosen, "service": {"name": service}}
    ),
    st.lists(objectives(), min_size=1, max_size=4, unique_by=lambda one: one.name),
    SLUGS,
)


@pytest.mark.parametrize("module", [openslo, openslo_query, openslo_read])
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


NEXT_LINE = Objective(name="a", sli="availability", target=0.9, model="\x85", description="\u2028")


@example(Config(objectives=(NEXT_LINE,)))
@given(CONFIGS)
def test_what_is_exported_comes_back_the_same(config: Config) -> None:
    text = export_openslo(config)

    back = read_openslo(text, "slo.yaml")
    section = read_yaml(objectives_section(back.objectives))

    assert back.objectives == config.objectives
    assert back.notes == ()
    assert Config.model_validate(section).objectives == config.objectives
    assert export_openslo(config) == text


@given(CONFIGS)
def test_what_is_exported_has_the_published_shape(config: Config) -> None:
    documents = list(yaml.safe_load_all(export_openslo(config)))

    names = set()
    for document in documents:
        header = Header.model_validate(document)
        SPECS[header.kind].model_validate(document["spec"])
        names.add((header.kind, header.metadata.name))
        # RFC 1123, what every implementation takes
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", header.metadata.name)
        for key in header.metadata.annotations or {}:
            assert re.fullmatch(r"opsctl\.vllm/[a-z][a-z-]*[a-z]", key)
    assert len(names) == len(documents) == 1 + 2 * len(config.objectives)


def test_what_openslo_has_no_room_for_is_refused() -> None:
    config = Config(
        objectives=(
            Objective(name="all", sli="availability", target=1.0),
            Objective(name="told", sli="availability", target=0.9, description="x" * 1051),
        )
    )

    with pytest.raises(ConfigError) as caught:
        export_openslo(config)

    assert caught.value.problems == (
        "objectives[0] (all).target: OpenSLO has no target of 100 %; write 99.9% or less",
        "objectives[1] (told).description: 1051 characters; OpenSLO takes 1050, shorten it",
    )


def foreign(
    good: str,
    total: str,
    *,
    part: str = "good",
    target: str = "target: 0.99",
    window: str = "duration: 30d, isRolling: true",
    method: str = "Occurrences",
) -> str:
    """An SLO as others write it, its indicator inside."""
    return f"""
apiVersion: openslo/v1
kind: SLO
metadata: {{name: chat/fast, displayName: Chat is fast}}
spec:
  service: chat
  indicator:
    metadata: {{name: chat-fast}}
    spec:
      ratioMetric:
        counter: true
        {part}: {{metricSource: {{type: prometheus, spec: {{query: '{good}'}}}}}}
        total: {{metricSource: {{type: prometheus, spec: {{query: '{total}'}}}}}}
  timeWindow: [{{{window}}}]
  budgetingMethod: {method}
  objectives: [{{{target}}}]
"""


TTFT = "vllm:time_to_first_token_seconds"


@pytest.mark.parametrize(
    ("part", "chosen", "total", "expected"),
    [
        (
            "good",
            f'sum(rate({TTFT}_bucket{{le="0.5"}}[5m]))',
            f"sum(rate({TTFT}_count[5m]))",
            {"sli": "time_to_first_token", "threshold": 0.5},
        ),
        (
            "good",
            f'{TTFT}_bucket{{le=~"1(\\\\.0)?", model_name="llama"}}',
            f'{TTFT}_bucket{{le="+Inf", model_name="llama"}}',
            {"sli": "time_to_first_token", "threshold": 1.0, "model": "llama"},
        ),
        (
            "bad",
            "rate(vllm:e2e_request_latency_seconds_count[{{.window}}]) - "
            'rate(vllm:e2e_request_latency_seconds_bucket{le="1.5"}[{{.window}}])',
            "rate(vllm:e2e_request_latency_seconds_count[{{.window}}])",
            {"sli": "e2e_latency", "threshold": 1.5},
        ),
        (
            "good",
            'vllm_engine_request_queue_seconds_bucket{le="0.3"}',
            "vllm_engine_request_queue_seconds_count",
            {"sli": "queue_time", "threshold": 0.3},
        ),
        (
            "good",
            'vllm:time_per_output_token_seconds_bucket{le="0.1"}',
            "vllm:time_per_output_token_seconds_count",
            {"sli": "inter_token_latency", "threshold": 0.1},
        ),
        (
            "good",
            'vllm:request_success_total{finished_reason=~"stop|length"}',
            "vllm:request_success_total",
            {"sli": "availability", "threshold": None},
        ),
        (
            "bad",
            'sum(rate(http_requests_total{status=~"5.."}[5m]))',
            "sum(rate(http_requests_total[5m]))",
            {"sli": "availability", "threshold": None},
        ),
    ],
)
def test_others_are_understood_by_their_metrics(
    part: str, chosen: str, total: str, expected: dict[str, object]
) -> None:
    (found,) = read_openslo(foreign(chosen, total, part=part), "slo.yaml").objectives

    assert (found.name, found.target, found.description) == ("chat-fast", 0.99, "Chat is fast")
    assert {field: getattr(found, field) for field in expected} == expected


GOOD, TOTAL = f'{TTFT}_bucket{{le="0.5"}}', f"{TTFT}_count"
AT = "slo.yaml: document 1 (SLO chat/fast): "
RATIO = "spec.indicator.spec.ratioMetric"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (foreign("up", TOTAL), f"{RATIO}.good: no metric of vLLM's in 'up'; objectives count"),
        (foreign(TOTAL, TOTAL), f"{RATIO}.good: does not tell a threshold; write"),
        (foreign(GOOD, GOOD), f"{RATIO}.total: is not all requests; use the histogram's _count"),
        (foreign(f'{TTFT}_bucket{{le="$x"}}', TOTAL), f'{RATIO}.good: le="$x" is no threshold'),
        (
            foreign(
                f'{TTFT}_bucket{{le="0.5", model_name=~"a|b"}}',
                f'{TTFT}_count{{model_name=~"a|b"}}',
            ),
            f'{RATIO}.good: picks models by =~"a|b"',
        ),
        (foreign(f'{TTFT}_bucket{{le="1",model="a"}}', TOTAL), "picks other models than total"),
        (foreign(GOOD, "vllm:e2e_request_latency_seconds_count"), "against each other; use one"),
        (
            foreign("vllm:request_success_total", "vllm:request_success_total"),
            f'{RATIO}.good: must pick finished_reason="stop" and leave out "error"',
        ),
        (
            foreign("vllm:num_requests_running", "vllm:num_requests_running"),
            "no objective's metric",
        ),
        (foreign(GOOD, TOTAL, method="Timeslices"), "spec.budgetingMethod: opsctl counts events"),
        (foreign(GOOD, TOTAL, method="Often"), "spec.budgetingMethod: input should be"),
        (
            foreign(GOOD, TOTAL, window="duration: 4w, isRolling: true"),
            "spec.timeWindow[0]: 4w rolling; opsctl's budgets are of 30d, write duration: 30d",
        ),
        (
            foreign(GOOD, TOTAL, window="duration: 30 days, isRolling: true"),
            "spec.timeWindow[0].duration: string should match pattern",
        ),
        (
            foreign(GOOD, TOTAL, target="target: 1.5"),
            "spec.objectives[0].target: input should be less",
        ),
        (foreign(GOOD, TOTAL, target="op: lte"), "spec.objectives[0]: give one of target and"),
        (foreign(GOOD, TOTAL).replace("openslo/v1", "openslo/v2"), "apiVersion: input should be"),
        (
            foreign(GOOD, TOTAL).replace("total:", "all:"),
            "spec.indicator.spec.ratioMetric: total is missing; add it",
        ),
        (foreign(GOOD, TOTAL).replace("prometheus", "Datadog"), "'Datadog' is not read"),
    ],
)
def test_what_cannot_be_an_objective_is_refused_by_document_and_field(text: str, said: str) -> None:
    with pytest.raises(InputFileError) as caught:
        read_openslo(text, "slo.yaml")

    assert str(caught.value).startswith(AT)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_every_mistake_is_told_at_once() -> None:
    text = "---\n".join(
        [foreign("up", TOTAL), foreign(GOOD, TOTAL, method="Timeslices"), "[1, 2]\n"]
    )

    with pytest.raises(InputFileError) as caught:
        read_openslo(text, "slo.yaml")

    assert sorted(re.findall(r"document (\d)", str(caught.value))) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("opsctl.vllm/sli: e2e_latency", "opsctl.vllm/sli: e2e", "opsctl.vllm/sli: "),
        ("opsctl.vllm/notify", "opsctl.vllm/notfy", "unknown; did you mean notify?"),
        ("threshold: 1.5s", "threshold: soon", "'soon' is not a duration"),
        ("indicatorRef: e2e", "indicatorRef: e3e", "no usable SLI 'e3e'; did you mean e2e?"),
    ],
)
def test_our_own_documents_are_checked_when_somebody_edits_them(
    before: str, after: str, said: str
) -> None:
    config = Config(
        objectives=(Objective(name="e2e", sli="e2e_latency", threshold=1.5, target=0.9),)
    )
    text = export_openslo(config)
    assert before in text

    with pytest.raises(InputFileError, match=re.escape(said)):
        read_openslo(text.replace(before, after), "slo.yaml")


def test_several_targets_are_several_objectives_and_what_is_left_out_is_told() -> None:
    text = foreign(
        f'{TTFT}_bucket{{le="1", namespace="prod"}}',
        TOTAL,
        target="targetPercent: 99.9}, {target: 0.5, displayName: most",
    )
    policy = "---\napiVersion: openslo/v1\nkind: AlertPolicy\nmetadata: {name: page}\nspec: {}\n"

    found = read_openslo(text + policy, "slo.yaml")

    assert [(one.name, one.target, one.description) for one in found.objectives] == [
        ("chat-fast-1", 0.999, None),
        ("chat-fast-2", 0.5, "most"),
    ]
    assert found.notes == (
        f"{AT}objectives cover every target: namespace of the queries left out",
        "slo.yaml: document 2 (AlertPolicy page): left out; opsctl alarms build writes alerts of its own",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "slo.yaml: no document of kind SLO; add one"),
        ("a: [", "slo.yaml:1: not YAML"),
        ("text", "slo.yaml: document 1: expected apiVersion, kind, metadata and spec"),
    ],
)
def test_a_file_without_objectives_says_so(text: str, said: str) -> None:
    with pytest.raises(InputFileError, match=re.escape(said)):
        read_openslo(text, "slo.yaml")

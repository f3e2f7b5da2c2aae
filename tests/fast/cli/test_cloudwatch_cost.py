"""opsctl cloudwatch cost: bills that were computed by hand, and usage as real replicas have it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Opsctl
from paths import PAGES, RECORDINGS
from pydantic import ValidationError

from vllm_opsctl.exporter.cloudwatch_cost import (
    Fleet,
    Price,
    Usage,
    bill,
    exported,
    naively_exported,
    prices,
)
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.otlp_cost import export_bytes
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.exporter.sinks.cloudwatch.emf import lines_of
from vllm_opsctl.exporter.sinks.cloudwatch.interval import Labels, data_of

ONE = Fleet(1, ("tiny",), 1)

PAGE = "arn:aws:sns:eu-central-1:123456789012:llm-page"


def config(objectives: list[dict[str, Any]] | None = None, **cloudwatch: Any) -> Config:
    """One objective, unless others are given; the sink's settings."""
    one = {"name": "availability", "sli": "availability", "target": 0.999}
    return Config.model_validate(
        {"objectives": objectives or [one], "exporter": {"cloudwatch": cloudwatch}}
    )


# -- prices ----------------------------------------------------------------------------------------


def test_the_price_file_says_where_every_price_is_from() -> None:
    found = prices()

    assert (found.region, found.currency) == ("us-east-1", "USD")
    assert {*found.prices, *found.unpriced} == set(Usage.__dataclass_fields__)
    sources = [one.source for one in found.prices.values()]
    sources += [one.source for one in found.unpriced.values()]
    assert all(source.startswith("https://") for source in sources)


@pytest.mark.parametrize(
    ("usage", "listed", "total"),
    [
        # 15 x 0.30 + 43.2 x 0.01
        (Usage(metrics=15, calls=43_200), 4.932, 5 * 0.30),
        # 2 x 0.10 beyond the ten free ones, and three composites, which are never free
        (Usage(alarms=12, composites=3), 1.2 + 1.5, 0.2 + 1.5),
        (Usage(dashboards=4, keys=2), 12 + 2, 3 + 2),
        (Usage(logs=8), 4, 1.5),
        (Usage(calls=1_500_000), 15, 5),
        (Usage(), 0, 0),
    ],
)
def test_known_bills(usage: Usage, listed: float, total: float) -> None:
    found = bill(usage)

    assert found.listed == pytest.approx(listed)
    assert found.total == pytest.approx(total)


@pytest.mark.parametrize(
    ("metrics", "listed"),
    [
        (10_000, 3000),
        (12_000, 3000 + 2_000 * 0.10),
        (300_000, 3000 + 240_000 * 0.10 + 50_000 * 0.05),
        (1_000_100, 3000 + 240_000 * 0.10 + 750_000 * 0.05 + 100 * 0.02),
    ],
)
def test_more_metrics_are_cheaper_each(metrics: int, listed: float) -> None:
    assert bill(Usage(metrics=metrics)).listed == pytest.approx(listed)


@pytest.mark.parametrize(
    "tiers",
    [
        [{"up_to": 10, "price": 1}],
        [{"price": 1}, {"price": 2}],
        [{"up_to": 20, "price": 1}, {"up_to": 10, "price": 2}, {"price": 3}],
    ],
)
def test_tiers_ascend_and_the_last_has_no_end(tiers: list[dict[str, float]]) -> None:
    with pytest.raises(ValidationError, match="tier"):
        Price.model_validate(
            {"per": "x", "tiers": tiers, "source": "https://x", "standing": "documented"}
        )


# -- usage -----------------------------------------------------------------------------------------


def test_metrics_are_those_of_a_model_those_of_its_objectives_and_the_heartbeat() -> None:
    assert exported(config(), ONE, "put").metrics == 9 + 2 + 1
    assert exported(config(), Fleet(4, ("tiny",), 4), "put").metrics == 9 + 2 + 1
    assert exported(config(), Fleet(4, ("a", "b"), 4), "put").metrics == 2 * (9 + 2) + 1


def test_an_objective_of_one_model_is_counted_for_that_one() -> None:
    own = config([{"name": "a", "sli": "availability", "target": 0.99, "model": "a"}])

    assert exported(own, Fleet(4, ("a", "b"), 4), "put").metrics == 2 * 9 + 2 + 1


def test_a_dimension_for_each_target_multiplies_the_metrics() -> None:
    per_target = config(per_target=True)

    assert exported(per_target, Fleet(4, ("tiny",), 4), "put").metrics == 4 * (9 + 2 + 1)
    assert exported(per_target, Fleet(5, ("a", "b"), 5), "put").metrics == 5 * (9 + 2 + 1)


def test_with_the_tap_there_are_three_metrics_more() -> None:
    with_tap = Config.model_validate({"exporter": {"tap": {"dir": "/run/tap"}}})

    more = exported(with_tap, ONE, "put").metrics - exported(Config(), ONE, "put").metrics

    assert more == 3, "RequestsGaveUp, and both events of ttft-returning"


@pytest.mark.parametrize(
    ("interval", "fleet", "calls"),
    [
        (60, ONE, 43_200),
        (10, ONE, 6 * 43_200),
        (60, Fleet(4, ("tiny",), 4), 4 * 43_200),
        (60, Fleet(4, ("tiny",), 1), 43_200),
        # 12 data of each of 100 replicas are 1,200: two requests of up to 1,000
        (60, Fleet(100, ("tiny",), 1), 2 * 43_200),
        # one sidecar of 84 replicas sends two requests, one of 83 sends one
        (60, Fleet(167, ("tiny",), 2), 3 * 43_200),
    ],
)
def test_calls_are_what_each_sidecar_needs_in_each_interval(
    interval: float, fleet: Fleet, calls: float
) -> None:
    assert exported(config(interval=interval), fleet, "put").calls == calls


def test_log_lines_replace_calls() -> None:
    one, four = (exported(config(), Fleet(n, ("tiny",), n), "emf") for n in (1, 4))

    assert (one.calls, one.metrics) == (0, 12)
    assert four.logs == pytest.approx(4 * one.logs)


@pytest.mark.parametrize(
    "name", ["baseline", "queue-overload", "kv-preemption-thrash", "gpu/healthy-busy"]
)
def test_usage_is_what_a_real_replica_sends_at_most(name: str) -> None:
    pages = [
        read_page(o.text, t=o.t, target=o.target)
        for o in read_recording(RECORDINGS / f"{name}.jsonl.gz")
        if o.kind == "metrics"
    ]
    minute = [page for page in pages[1:] if page.t <= pages[0].t + 60]
    sent = data_of(
        pages[0],
        minute,
        t=0.0,
        labels=Labels("vllm", None),
        objectives=Config().objectives,
    )
    size = sum(len(line.encode()) for line in lines_of("vLLM", sent, now=0.0))
    (model,) = {dict(d.dimensions)["Model"] for d in sent if "Model" in dict(d.dimensions)}

    counted = exported(Config(), Fleet(1, (model,), 1), "emf")

    assert counted.metrics == len({(datum.metric, datum.dimensions) for datum in sent})
    assert 0.5 < size * 43_200 / 1e9 / counted.logs <= 1


def test_every_series_is_counted_on_a_real_page() -> None:
    naive = prices().naive
    page = (PAGES / f"vllm-{naive.vllm_version}-v1.recorded.prom").read_text()
    series = [line for line in page.splitlines() if line and not line.startswith("#")]

    assert naive.series == len(series)
    assert f"{sum(line.startswith('vllm:') for line in series)} are vLLM's own" in naive.what


def test_every_series_of_every_replica_is_a_metric() -> None:
    assert naively_exported(config(), 4, 425) == Usage(metrics=1700, calls=4 * 43_200)
    assert naively_exported(config(), 1, 2500) == Usage(metrics=2500, calls=3 * 43_200)


# -- the command -----------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "service": {"name": "shop"},
    "targets": [{"url": f"http://chat-{i}:8000", "models": ["tiny"]} for i in range(4)],
    "objectives": [{"name": "availability", "sli": "availability", "target": "99.9%"}],
    "exporter": {"cloudwatch": {"sink": "put"}},
}


class Cost:
    """Runs the command on a configuration."""

    def __init__(self, opsctl: Opsctl, folder: Path) -> None:
        self._opsctl, self._folder = opsctl, folder

    def run(self, *arguments: str, code: int = 0, **changes: Any) -> tuple[str, str]:
        """Standard output and error; keys of ``changes`` replace those of the configuration."""
        (self._folder / "opsctl.yaml").write_text(yaml.safe_dump(SETTINGS | changes))
        ran = self._opsctl.run(
            *("cloudwatch", "cost", *arguments), env={"COLUMNS": "80"}, cwd=self._folder
        )
        assert ran.returncode == code, ran.stderr
        return ran.stdout, ran.stderr

    def bills(self, *arguments: str, **changes: Any) -> list[dict[str, Any]]:
        """What it computes."""
        found = json.loads(self.run(*arguments, "-o", "json", **changes)[0])["bills"]
        assert isinstance(found, list)
        return found


@pytest.fixture
def cost(opsctl: Opsctl, tmp_path: Path) -> Cost:
    return Cost(opsctl, tmp_path)


def quantities(found: dict[str, Any]) -> dict[str, float]:
    return {line["item"]: line["quantity"] for line in found["lines"]}


def test_a_bill_by_hand(cost: Cost) -> None:
    one, fleet = cost.bills("--alarms", "9", "--composites", "2", "--dashboards", "4")

    assert quantities(fleet) == {
        "metrics": 12,
        "calls": 172_800,
        "alarms": 9,
        "composites": 2,
        "dashboards": 4,
        "keys": 1,
    }
    assert fleet["list_price"] == pytest.approx(3.6 + 1.728 + 0.9 + 1.0 + 12.0 + 1.0)
    assert fleet["free_tier"] == pytest.approx(3.0 + 1.728 + 0.9 + 9.0)
    assert fleet["total"] == pytest.approx(0.6 + 1.0 + 3.0 + 1.0)
    assert one["list_price"] == pytest.approx(3.6 + 0.432 + 0.9 + 1.0 + 12.0 + 1.0)
    assert fleet["naive"]["list_price"] == pytest.approx(1700 * 0.30 + 1.728)
    assert fleet["naive"]["total"] == pytest.approx(1690 * 0.30)
    assert fleet["naive_over_total"] == pytest.approx(507 / 5.6, abs=0.01)


def test_alarms_are_counted_as_they_are_built(cost: Cost, opsctl: Opsctl, tmp_path: Path) -> None:
    _, fleet = cost.bills()
    built = opsctl.run("alarms", "build", "--to", "cloudwatch", "--out", "out", cwd=tmp_path)

    match = re.search(r"on (\d+) metrics, (\d+) composites", built.stdout)
    assert match is not None, built.stdout
    counted = quantities(fleet)
    assert (counted["alarms"], counted["composites"]) == (int(match[1]), int(match[2]))


def test_models_multiply_metrics_and_alarms_and_replicas_do_not(cost: Cost) -> None:
    plain = quantities(cost.bills()[1])
    many = quantities(cost.bills("--replicas", "40")[1])
    models = quantities(cost.bills("--models", "2")[1])

    assert (many["metrics"], many["alarms"]) == (plain["metrics"], plain["alarms"])
    assert models["metrics"] == 2 * (plain["metrics"] - 1) + 1
    assert models["alarms"] == 2 * plain["alarms"] - 1, "the sidecars' heartbeat has no model"


def test_where_no_model_is_named_each_has_a_stack_of_its_own(cost: Cost) -> None:
    plain = quantities(cost.bills("--replicas", "2", targets=[])[1])
    models = quantities(cost.bills("--replicas", "2", "--models", "2", targets=[])[1])

    for item in ("alarms", "composites", "keys"):
        assert models[item] == 2 * plain[item]


def test_objectives_of_other_models_are_not_in_one_replicas_bill(cost: Cost) -> None:
    own = [
        {"name": name, "sli": "availability", "target": "99%", "model": name} for name in ("a", "b")
    ]
    targets = [{"url": f"http://{name}:1", "models": [name]} for name in ("a", "b")]

    one, fleet = cost.bills(objectives=own, targets=targets)

    assert (quantities(one)["metrics"], quantities(fleet)["metrics"]) == (12, 23)
    assert quantities(one)["alarms"] < quantities(fleet)["alarms"]


def test_a_topic_that_is_there_needs_no_key_of_ours(cost: Cost) -> None:
    topics = {"page_topic": PAGE, "ticket_topic": PAGE}

    assert "keys" not in quantities(cost.bills(alarms=topics)[1])


def test_alarms_that_cannot_be_built_are_told_once_and_not_counted(cost: Cost) -> None:
    sink = {"cloudwatch": {"sink": "put", "per_target": True}}
    out, said = cost.run("-o", "json", exporter=sink)
    _, quiet = cost.run("--alarms", "3", "--composites", "1", exporter=sink)

    _, fleet = json.loads(out)["bills"]
    assert quantities(fleet) == {"metrics": 48, "calls": 172_800, "dashboards": 1}
    assert said.count("Note: no alarms are counted") == 1
    assert "exporter.cloudwatch.per_target" in said
    assert quiet == ""


def test_the_goal_of_a_twentieth(cost: Cost) -> None:
    """
    Shipped objectives, four replicas, alarms and a board in it; every series has neither.

    At list prices it is a sixteenth, and the export alone, like for like, a sixtieth.
    """
    settings = {key: value for key, value in SETTINGS.items() if key != "objectives"}
    one, fleet = cost.bills(**(settings | {"objectives": Config().model_dump()["objectives"]}))

    assert fleet["replicas"] == 4
    assert fleet["naive_over_total"] >= 20
    assert fleet["naive_over_total_at_list_prices"] >= 15
    sent = sum(x["list_price"] for x in fleet["lines"] if x["item"] in ("metrics", "calls"))
    assert fleet["naive"]["list_price"] / sent >= 60
    assert one["replicas"] == 1


def test_the_text_fits_a_terminal_and_ends_with_total_naive_total_and_ratio(cost: Cost) -> None:
    out, said = cost.run()
    lines = out.splitlines()

    assert said == ""
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("shop: ")
    assert [line[:21].strip() for line in lines[-4:]] == [
        "Total",
        "Every series",
        "Total / every series",
        "at list prices",
    ]
    assert re.search(r"us-east-1, read \d{4}-\d\d-\d\d, in USD", " ".join(out.split()))


# -- by OTLP ---------------------------------------------------------------------------------------

OTLP = {"cloudwatch": {"sink": "otlp"}}
COLLECTOR = {"cloudwatch": {"sink": "otlp", "endpoint_url": "http://collector:4318/v1/metrics"}}


def unpriced(found: dict[str, Any]) -> dict[str, float]:
    return {line["item"]: line["quantity"] for line in found["unpriced"]}


def test_by_otlp_the_heartbeat_is_all_that_is_put(cost: Cost) -> None:
    _, fleet = cost.bills(exporter=OTLP)

    assert quantities(fleet) == {
        "metrics": 1,
        "calls": 172_800,
        "alarms": 1,
        "composites": 1,
        "keys": 1,
    }
    assert fleet["list_price"] == pytest.approx(0.3 + 1.728 + 0.1 + 0.5 + 1.0)


def test_what_goes_by_otlp_is_weighed_and_its_alarms_are_counted(
    cost: Cost, opsctl: Opsctl, tmp_path: Path
) -> None:
    one, fleet = cost.bills(exporter=OTLP)
    opsctl.run("alarms", "build", "--to", "cloudwatch", "--out", "out", cwd=tmp_path)
    template = (tmp_path / "out" / "cloudwatch.yaml").read_text()

    assert unpriced(fleet)["promql"] == template.count("PromQLCriteria")
    assert unpriced(fleet)["otlp"] == pytest.approx(4 * unpriced(one)["otlp"])
    # 43,200 requests a month of one replica
    loaded = Config.model_validate(SETTINGS | {"exporter": OTLP})
    assert unpriced(one)["otlp"] == pytest.approx(export_bytes(loaded, ("tiny",)) * 43_200 / 1e9)


def test_one_alarm_is_of_all_models_so_they_multiply_none(cost: Cost) -> None:
    for targets in (SETTINGS["targets"], SETTINGS["targets"][:0]):
        arguments = ("--replicas", "4", "--models", "2")
        _, one = cost.bills("--replicas", "4", exporter=OTLP, targets=targets)
        _, two = cost.bills(*arguments, exporter=OTLP, targets=targets)
        assert unpriced(one)["promql"] == unpriced(two)["promql"]
        assert quantities(one) == quantities(two)


def test_where_a_price_is_not_known_there_is_no_ratio(cost: Cost) -> None:
    out, said = cost.run(exporter=OTLP)
    lines, whole = out.splitlines(), " ".join(out.split())
    _, fleet = cost.bills(exporter=OTLP)

    assert said == ""
    assert max(map(len, lines)) <= 80
    assert fleet["naive_over_total"] is None
    assert fleet["naive_over_total_at_list_prices"] is None
    assert "1/" not in out.replace("and/or", "")
    assert re.search(
        r"and [\d.]+ GB by OTLP and \d+ PromQL alarms, whose price is not known", whole
    )
    assert "billed per GB, at a price that is on no page we could read" in whole
    assert any(re.match(r"GB by OTLP +not known +[\d.]+ +\? +[\d.]+ +\?$", line) for line in lines)
    assert any(line.startswith("Total of known prices") for line in lines)
    assert "Dashboards" not in out


def test_markdown_of_what_has_no_price_is_a_table_too(cost: Cost) -> None:
    out, _ = cost.run("-o", "markdown", exporter=OTLP)
    rows = [line for line in out.splitlines() if line.startswith("|")]

    assert len({row.count("|") for row in rows}) == 1


def test_behind_a_collector_nothing_is_put(cost: Cost) -> None:
    _, fleet = cost.bills(exporter=COLLECTOR)
    out, _ = cost.run(exporter=COLLECTOR)

    assert quantities(fleet) == {"keys": 1}
    assert unpriced(fleet).keys() == {"otlp", "promql"}
    assert "GB go to the collector at http://collector:4318/v1/metrics" in " ".join(out.split())


def test_every_bill_says_what_has_no_price_in_it(cost: Cost) -> None:
    assert [found["unpriced"] for found in cost.bills()] == [[], []]


@pytest.mark.parametrize("arguments", [("--replicas", "10000"), ("--series", "100000")])
def test_large_numbers_do_not_run_into_each_other(cost: Cost, arguments: tuple[str, ...]) -> None:
    lines = cost.run(*arguments)[0].splitlines()

    assert max(map(len, lines)) <= 80
    assert all(re.search(r"\d \s*1/", line) for line in lines if line.startswith("Total /"))


def test_markdown_is_a_table(cost: Cost) -> None:
    out, _ = cost.run("-o", "markdown")
    rows = [line for line in out.splitlines() if line.startswith("|")]

    assert len({row.count("|") for row in rows}) == 1
    assert any(row.startswith("| Total |") for row in rows)


def test_one_replica_is_told_once(cost: Cost) -> None:
    assert len(cost.bills("--replicas", "1")) == 1


def test_nothing_to_pay_has_no_ratio(cost: Cost) -> None:
    free = ("--alarms", "0", "--composites", "0", "--dashboards", "0")
    topics = {"page_topic": PAGE, "ticket_topic": PAGE}
    none = [{"name": "a", "sli": "availability", "target": "99%", "model": "other"}]
    (found,) = cost.bills(*free, "--replicas", "1", "--models", "1", objectives=none, alarms=topics)

    assert (found["total"], found["naive_over_total"]) == (0, None)


@pytest.mark.parametrize(
    ("cloudwatch", "said"),
    [
        ({}, "exporter.cloudwatch.sink is off, this is for put"),
        (
            {"sink": "put", "region": "eu-central-1"},
            "eu-central-1 (exporter.cloudwatch.region) may",
        ),
        ({"sink": "emf"}, "Log lines at most"),
        ({"sink": "put", "per_target": True}, "one set for each target"),
    ],
)
def test_what_the_bill_is_for_is_told(cost: Cost, cloudwatch: dict[str, Any], said: str) -> None:
    out, _ = cost.run(exporter={"cloudwatch": cloudwatch})

    assert said in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--replicas", "-1"), "--replicas"),
        (("--replicas", "0"), "--replicas"),
        (("--replicas", "10001"), "--replicas"),
        (("--alarms", "-1"), "--alarms"),
        (("--dashboards", "x"), "--dashboards"),
        (("--series", "0"), "--series"),
        (("--sidecars", "5"), "5 sidecars for 4 replicas"),
        (("--models", "5", "--replicas", "4"), "5 models on 4 replicas"),
    ],
)
def test_what_cannot_be_is_refused(cost: Cost, arguments: tuple[str, ...], said: str) -> None:
    out, problem = cost.run(*arguments, code=64)

    assert out == ""
    assert said in problem

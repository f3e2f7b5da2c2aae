"""How a CloudWatch bill looks: a table for terminals, Markdown for tickets, JSON for tools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from vllm_opsctl.cli.paragraphs import wrapped
from vllm_opsctl.exporter.aws import sends_heartbeat
from vllm_opsctl.exporter.cloudwatch_cost import (
    Bill,
    Fleet,
    Item,
    Price,
    Sink,
    Unknown,
    prices,
)
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.units import format_duration

SCHEMA_VERSION = 1

_TITLES: dict[Item, str] = {
    "metrics": "Metrics",
    "calls": "PutMetricData calls",
    "logs": "GB of log lines",
    "alarms": "Metrics in alarms",
    "composites": "Composite alarms",
    "dashboards": "Dashboards",
    "keys": "KMS keys",
}

_UNPRICED: dict[Unknown, str] = {"otlp": "GB by OTLP", "promql": "PromQL alarms"}

_NONE = 0.005
"""Less than half a cent is nothing."""


@dataclass(frozen=True, slots=True)
class Column:
    """
    One fleet's bill.

    Args:
        fleet: Whose.
        bill: Of the configuration.
        naive: Of exporting every series.
    """

    fleet: Fleet
    bill: Bill
    naive: Bill

    @property
    def title(self) -> str:
        """What stands over it."""
        return "one replica" if self.fleet.replicas == 1 else f"{self.fleet.replicas:,} replicas"


@dataclass(frozen=True, slots=True)
class Quote:
    """
    What is told.

    Args:
        config: Whose bill it is.
        sink: The one that it is for.
        series: Of one replica's page.
        columns: One replica's bill, then the fleet's; one alone where they are the same.
    """

    config: Config
    sink: Sink
    series: int
    columns: tuple[Column, ...]

    def as_dict(self) -> dict[str, Any]:
        """All of it, amounts in the price file's currency."""
        found = prices()
        settings = self.config.exporter.cloudwatch
        return {
            "schema_version": SCHEMA_VERSION,
            "service": self.config.service.name,
            "region": found.region,
            "prices_read": found.read.isoformat(),
            "currency": found.currency,
            "sink": self.sink,
            "sink_configured": settings.sink,
            "interval_s": settings.interval,
            "per_target": settings.per_target,
            "naive_series": self.series,
            "bills": [_column_dict(column) for column in self.columns],
            "prices": {item: price.model_dump(mode="json") for item, price in found.prices.items()},
            "unpriced": {item: one.model_dump(mode="json") for item, one in found.unpriced.items()},
            "not_included": list(found.not_included),
        }


def _column_dict(column: Column) -> dict[str, Any]:
    return {
        "replicas": column.fleet.replicas,
        "models": list(column.fleet.models),
        "sidecars": column.fleet.sidecars,
        **_bill_dict(column.bill),
        "naive": _bill_dict(column.naive),
        "naive_over_total": _over(column, column.naive.total, column.bill.total),
        "naive_over_total_at_list_prices": _over(column, column.naive.listed, column.bill.listed),
    }


def _bill_dict(bill: Bill) -> dict[str, Any]:
    return {
        "lines": [
            {
                "item": line.item,
                "quantity": line.quantity,
                "list_price": round(line.listed, 4),
                "free_tier": round(line.free, 4),
            }
            for line in bill.lines
        ],
        "unpriced": [
            {"item": item, "quantity": quantity} for item, quantity in bill.unpriced.items()
        ],
        "list_price": round(bill.listed, 4),
        "free_tier": round(bill.free, 4),
        "total": round(bill.total, 4),
    }


def _over(column: Column, naive: float, total: float) -> float | None:
    """How many times as much the naive export costs; None when nothing is to pay, or not all is known."""
    return None if column.bill.unpriced or total < _NONE else round(naive / total, 2)


def text(quote: Quote) -> Iterator[str]:
    """The bill for a terminal of 80 columns, line by line; total, naive total and ratio come last."""
    yield click.style(wrapped(_headline(quote), indent=""), bold=True)
    yield from (wrapped(line, indent="    ", first="  ") for line in _about(quote))
    yield ""
    head, *rows = _rows(quote)
    titles = (f"{title}, {unit}" for title, unit in zip(head[2::2], head[3::2], strict=True))
    yield click.style(
        f"{head[0]:<21}{head[1]:<15}" + "".join(f"{title:>22}" for title in titles), bold=True
    )
    for row in rows:
        yield _table_line(row)


def markdown(quote: Quote) -> Iterator[str]:
    """The bill for a ticket, line by line."""
    yield f"## {_headline(quote)}\n"
    yield from (f"- {line}" for line in _about(quote))
    yield ""
    head, *rows = _rows(quote)
    yield f"| {' | '.join(head)} |"
    yield "|---|---|" + "---:|" * (len(head) - 2)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _headline(quote: Quote) -> str:
    column = quote.columns[-1]
    replicas = "one replica" if column.fleet.replicas == 1 else column.title
    more = " and ".join(
        f"{_quantity(item, quantity)} {_UNPRICED[item]}"
        for item, quantity in column.bill.unpriced.items()
    )
    return (
        f"{quote.config.service.name}: {column.bill.total:,.2f} {prices().currency} a month in "
        f"CloudWatch for {replicas}{f', and {more}, whose price is not known' if more else ''}"
    )


def _about(quote: Quote) -> Iterator[str]:
    found, settings = prices(), quote.config.exporter.cloudwatch
    yield (
        f"Prices of {found.region}, read {found.read}, in {found.currency}; a month has 30 days; the "
        "free tier is the whole account's"
    )
    if settings.region not in (None, found.region):
        yield f"{settings.region} (exporter.cloudwatch.region) may have other prices"
    fleet = quote.columns[-1].fleet
    scope = "one set for each target" if settings.per_target else "one set for the fleet"
    if quote.sink == "otlp":
        scope = "everything of each replica"
    sink = (
        quote.sink
        if settings.sink == quote.sink
        else f"exporter.cloudwatch.sink is {settings.sink}, this is for {quote.sink}"
    )
    yield (
        f"{sink}; every {format_duration(settings.interval)}, {scope}; "
        f"{_counted(len(fleet.models), 'model')}, {_counted(fleet.sidecars, 'sidecar')}"
    )
    if quote.sink == "emf":
        yield "Log lines at most: in every interval every bucket of every histogram is hit"
    if quote.sink == "otlp" and not sends_heartbeat(settings):
        yield (
            f"GB go to the collector at {settings.endpoint_url}; whether it sends them on to CloudWatch is "
            "not known here"
        )
    unknown = [
        one for item, one in found.unpriced.items() if item in quote.columns[-1].bill.unpriced
    ]
    for one in unknown:
        yield f"No price: {one.per}; {one.why}"
    counted = (
        f" (vLLM {found.naive.vllm_version}, {found.naive.what})"
        if quote.series == found.naive.series
        else ""
    )
    yield f"Every series: {quote.series:,} of each replica{counted}, by PutMetricData, without alarms"
    yield f"Not in it: {'; '.join(found.not_included)}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _rows(quote: Quote) -> Iterator[tuple[str, ...]]:
    """The table: title, price, then quantity and amount of each column."""
    columns = quote.columns
    yield ("", "price", *(cell for column in columns for cell in (column.title, prices().currency)))
    for item, price in prices().prices.items():
        lines = [
            next((line for line in column.bill.lines if line.item == item), None)
            for column in columns
        ]
        if any(lines):
            cells = [
                cell
                for line in lines
                for cell in (
                    (_quantity(item, line.quantity), f"{line.listed:,.2f}") if line else ("-", "-")
                )
            ]
            yield (_TITLES[item], _unit_price(price), *cells)
    for unknown, title in _UNPRICED.items():
        quantities = [column.bill.unpriced.get(unknown) for column in columns]
        if any(quantities):
            told = [_quantity(unknown, one) if one else "-" for one in quantities]
            yield (title, "not known", *(cell for one in told for cell in (one, "?")))
    is_whole = not any(column.bill.unpriced for column in columns)
    yield _sum_row("At list prices", [f"{column.bill.listed:,.2f}" for column in columns])
    yield _sum_row("Free tier", [f"{0 - column.bill.free:,.2f}" for column in columns])
    total = "Total" if is_whole else "Total of known prices"
    yield _sum_row(total, [f"{column.bill.total:,.2f}" for column in columns])
    yield _sum_row("Every series", [f"{column.naive.total:,.2f}" for column in columns])
    if is_whole:
        totals = [_ratio(_over(c, c.naive.total, c.bill.total)) for c in columns]
        yield _sum_row("Total / every series", totals)
        listed = [_ratio(_over(c, c.naive.listed, c.bill.listed)) for c in columns]
        yield _sum_row("  at list prices", listed)


def _sum_row(title: str, amounts: list[str]) -> tuple[str, ...]:
    return (title, "", *(cell for amount in amounts for cell in ("", amount)))


def _ratio(times: float | None) -> str:
    if not times:
        return "-"
    return f"1/{times:.1f}" if times >= 1 else f"{1 / times:.1f}"


def _quantity(item: Item | Unknown, quantity: float) -> str:
    return f"{quantity:,.2f}" if item in ("logs", "otlp") else f"{quantity:,.0f}"


def _unit_price(price: Price) -> str:
    first = price.tiers[0].price
    amount = f"{first * 1000:.2f} per 1,000" if first < 0.01 else f"{first:.2f}"
    return f"{amount} or less" if len(price.tiers) > 1 else amount


def _table_line(row: tuple[str, ...]) -> str:
    title, price, *cells = row
    pairs = (f"{a:>12}{b:>10}" for a, b in zip(cells[::2], cells[1::2], strict=True))
    return f"{title:<21}{price:<15}{''.join(pairs)}".rstrip()

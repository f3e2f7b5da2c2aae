"""
Writes the reference pages from the data they describe; `make docs` runs it, a test compares.

docs/metrics.md from the catalogue, docs/features.md from the feature registry, docs/tap-page.md from the
tap's layout, docs/limits.md from the bounds, docs/alerts.md from the alerts that are data, and docs/runbooks
from the failure modes (as `opsctl runbook build` does).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from vllm_opsctl.alarms.alerts import shipped_alerts
from vllm_opsctl.dashboards.boards import panels_by_mode
from vllm_opsctl.exporter import limits
from vllm_opsctl.exporter.catalogue import Concept, Version, catalogue
from vllm_opsctl.exporter.sinks.prometheus import own_metrics
from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.runbooks.features import feature_groups, registry
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.pages import build_pages

HERE = Path(__file__).resolve().parent
HEAD = "<!-- written by docs/generate.py; change the data, then: make docs -->\n"


def pages() -> dict[str, str]:
    """The generated pages by file name."""
    return {
        "metrics.md": _metrics(),
        "features.md": _features(),
        "tap-page.md": "\n".join(_tap_page()) + "\n",
        "limits.md": "\n".join(_limits()) + "\n",
        "alerts.md": "\n".join(_alerts()) + "\n",
        **{
            f"runbooks/{name}": text
            for name, text in build_pages(shipped_library(), panels_by_mode()).items()
        },
    }


def _metrics() -> str:
    lines = [
        HEAD,
        "# Metrics of engines\n",
        "What the sidecar exposes of each engine, and what it was read from. Labels: `service` and the "
        "configured free ones (`exporter.labels`), `target`,",
        "`model`, `engine` and the split label, where one is named; process-wide: `target` only.\n",
        "| on the sidecar | kind | meaning | vLLM's names (releases) |",
        "|---|---|---|---|",
    ]
    for concept in catalogue():
        if concept.kind == "info":
            continue
        name = concept.exported_name + ("_total" if concept.kind == "counter" else "")
        split = f" `{{{concept.split}}}`" if concept.split else ""
        lines.append(
            f"| `{name}`{split} | {concept.kind} | {concept.meaning} | {_names(concept)} |"
        )
    lines += [
        "\n# Metrics of the sidecar\n",
        "What it makes of these, and what it says of itself; counters end in `_total`.\n",
        "| on the sidecar | meaning |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in own_metrics().items()),
    ]
    return "\n".join(lines) + "\n"


_SECTION = re.compile(r"^# -- (.+?) -*$")
_BOUND = re.compile(r"^(MAX_\w+): Final = .+$")


def _limits() -> Iterator[str]:
    yield HEAD
    yield "# Bounds\n"
    yield "What comes from outside has a bound, and the bound has a name. What lies beyond is refused in"
    yield "one line, or cut and reported: by `opsctl_target_left_out{bound=…}`, the log, the verdict's"
    yield "*Not seen*. What else is done against hostile servers, clients and files:"
    yield "[security.md](security.md)."
    lines = iter(Path(limits.__file__).read_text(encoding="utf-8").splitlines())
    for line in lines:
        if (section := _SECTION.match(line)) is not None:
            yield f"\n## {section[1]}\n"
            yield "| bound | name | of what |"
            yield "|--:|---|---|"
        elif (bound := _BOUND.match(line)) is not None:
            text = next(lines).strip('"')
            yield f"| {_amount(bound[1])} | `{bound[1]}` | {text[0].upper()}{text[1:]} |"


def _amount(name: str) -> str:
    value = getattr(limits, name)
    if isinstance(value, float):
        return f"{value:.0e}".replace("e+", "e")
    if not name.endswith("_BYTES"):
        return f"{value:,}"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value // size} {unit}"
    return f"{value} bytes"


def _alerts() -> Iterator[str]:
    yield HEAD
    yield "# Alerts beside the burn rates\n"
    yield "What they are for, and how objectives become alerts: [alarms.md](alarms.md). *Fires after* is"
    yield "what the generated unit test shows, from the first bad minute on.\n"
    yield "| alert | does | about one | tells | fires after | failure modes |"
    yield "|---|---|---|---|---|---|"
    for specs in shipped_alerts().values():
        for spec in specs:
            modes = ", ".join(f"[{mode}](runbooks/{mode}.md)" for mode in spec.modes)
            summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"*\1*", spec.summary)
            about = spec.per if spec.per != "none" else "Prometheus"
            yield (
                f"| `{spec.alert}` | {spec.notify} | {about} | {summary} | {spec.test.after} | {modes} |"
            )


def _names(concept: Concept) -> str:
    return "<br>".join(
        f"`{name.name}` ({_version(name.since)}–{_version(name.until) if name.until else ''})"
        for name in concept.names
    )


def _version(version: Version) -> str:
    return ".".join(map(str, version))


def _features() -> str:
    lines = [
        HEAD,
        "# Features\n",
        "The numbers and facts that failure modes are judged by; `opsctl diagnose --show-features`",
        "prints them, `opsctl explain NAME` explains one. A feature that cannot be computed is",
        "missing, never 0.\n",
    ]
    for group, about in feature_groups().items():
        lines += [
            f"## {group}: {about.title}\n",
            f"From: {about.source}. Missing when: {about.missing}.\n",
            "| feature | unit | meaning |",
            "|---|---|---|",
            *(
                f"| `{f.name}` | {f.unit} | {f.meaning} |"
                for f in registry().values()
                if f.name.startswith(f"{group}.")
            ),
            "",
        ]
    return "\n".join(lines)


_TYPES = {
    "8s": "8 bytes",
    "Q": "unsigned 64",
    "d": "float 64",
    "I": "unsigned 32",
    "f": "float 32",
}


def _tap_page() -> Iterator[str]:
    yield HEAD
    yield "# Tap page, layout version 1\n"
    yield (
        f"A file of {layout.PAGE_SIZE:,} bytes, little-endian, that vLLM's process writes "
        "([the tap](tap.md)).\nThe directory (JSON) names everything behind the header with its "
        "offset, and readers go by it: names may be\nadded and offsets may move within a layout "
        "version; what changes its meaning gets a new version. Unknown\nnames are to be ignored, "
        "missing ones are missing.\n"
    )
    yield "## Reading it\n"
    yield (
        "1. Read `sequence`. Odd: the writer is within an update; read again.\n"
        "2. Copy the whole file with `pread` (a mapping would fault if the file were cut off).\n"
        "3. Read `sequence` again. The same number: the copy is consistent.\n\n"
        "The writer writes an odd `sequence`, the whole page, and an even `sequence`, each by `pwrite`; "
        "a busy\nengine's page at most every 100 ms. A file of another size was cut off or extended by "
        "others: the next\nupdate mends it. A file that was deleted or replaced is made anew under the "
        "same name, so open it for\neach copy.\n\n"
        "That relies on stores becoming visible in their order, as on x86-64. On other machines, "
        "wait 50 µs before\nstep 3. The writer holds a POSIX record lock on the file as long as it "
        "lives (`fcntl`, exclusive, whole file):\na reader that gets a shared lock knows that it "
        "is dead, also across PID namespaces; an odd `sequence` then\nmeans that it died within an "
        "update.\n"
    )
    yield "## Header\n"
    yield "| offset | field | type | meaning |\n|---:|---|---|---|"
    for name, code, meaning in layout.HEADER_FIELDS:
        yield f"| {layout.HEADER_OFFSETS[name]} | `{name}` | {_TYPES[code]} | {meaning} |"
    yield "\n## Sections\n"
    yield "| offset | bytes | section |\n|---:|---:|---|"
    yield f"| {layout.DIRECTORY_OFFSET} | {layout.DIRECTORY_CAPACITY} | directory, JSON |"
    yield (
        f"| {layout.FACTS_OFFSET} | {layout.FACTS_CAPACITY} | facts, JSON: vLLM's version, models, "
        "limits, KV-cache configuration |"
    )
    counters, gauges = 8 * len(layout.COUNTERS), 8 * len(layout.GAUGES)
    yield f"| {layout.COUNTERS_OFFSET} | {counters} | counters, unsigned 64 each |"
    yield f"| {layout.GAUGES_OFFSET} | {gauges} | gauges, float 64 each; NaN: not told |"
    for name, scale, meaning in layout.HISTOGRAMS:
        size = 8 * (layout.HISTOGRAM_HEAD + scale.buckets)
        yield f"| {layout.HISTOGRAM_OFFSETS[name]} | {size} | histogram `{name}`: {meaning} |"
    yield (
        f"| {layout.ADAPTERS_OFFSET} | {layout.ADAPTERS * layout.ADAPTER.size} | "
        f"{layout.ADAPTERS} LoRA adapters: name ({layout.ADAPTER_NAME_BYTES} bytes UTF-8, zeros "
        "behind), running, waiting (unsigned 32); an empty name ends them |"
    )
    yield (
        f"| {layout.RING_OFFSET} | {layout.SLOTS * layout.SLOT.size} | ring: {layout.SLOTS} seconds "
        f"of {layout.SLOT.size} bytes |"
    )
    yield "\n## Counters\n"
    yield "Since the page was created, in this order:\n"
    yield ", ".join(f"`{name}`" for name in layout.COUNTERS) + ".\n"
    yield (
        "`corrected_times` are times below 0 (counted as 0) or longer than the process lives (left "
        "out):\nvLLM subtracts time stamps that may not be set.\n"
    )
    yield "## Gauges\n"
    yield ", ".join(f"`{name}`" for name in layout.GAUGES) + ".\n"
    yield (
        "`waiting` is without `deferred`; `scheduled_at` and `recorded_at` are Unix seconds of the "
        "newest update\nwith scheduler statistics, and of the newest at all.\n"
    )
    yield "## Histograms\n"
    yield (
        "Sum and largest value (float 64), then the buckets (unsigned 64). "
        f"Every octave has {layout.SUBDIVISIONS} buckets of\nequal width, so a bucket is at most "
        f"1/{layout.SUBDIVISIONS} = {1 / layout.SUBDIVISIONS:.1%} of its lower bound wide. Bucket 0 "
        "holds what lies below\n2^`lowest_exponent`, the last one what lies beyond the octaves; "
        "bucket 1 + o × "
        f"{layout.SUBDIVISIONS} + i begins at\n2^(`lowest_exponent` + o) × (1 + i/"
        f"{layout.SUBDIVISIONS}).\n"
    )
    yield "| unit | lowest exponent | octaves | from | to | buckets |\n|---|---:|---:|---:|---:|---:|"
    for scale in (layout.SECONDS, layout.TOKENS):
        yield (
            f"| {scale.unit} | {scale.lowest_exponent} | {scale.octaves} | {scale.lower(1):g} | "
            f"{scale.lower(scale.buckets - 1):g} | {scale.buckets} |"
        )
    yield "\n## A second of the ring\n"
    yield (
        f"Slot number `second` mod {layout.SLOTS}; a `second` of 0 was never written, and one that "
        "is a round older than\nthe newest is out of date. Seconds without an update have no slot: "
        "states stay as they were.\n"
    )
    yield "| offset | field | type | meaning |\n|---:|---|---|---|"
    offset = 0
    for name, code, meaning in layout.SLOT_FIELDS:
        yield f"| {offset} | `{name}` | {_TYPES[code]} | {meaning} |"
        offset += struct.calcsize(f"<{code}")


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")

"""
The configuration model: one file, ``opsctl.yaml``, validated and frozen.

Every key has an environment override, lists as a whole (:mod:`.config_load`). Secrets are only
ever named.
"""

from __future__ import annotations

import ipaddress
import math
import re
from itertools import pairwise
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from vllm_opsctl.exporter.config_autoscaling import Autoscaling
from vllm_opsctl.exporter.config_types import Duration, Ratio, Size, Slug, Strict
from vllm_opsctl.exporter.identity import check_free_labels
from vllm_opsctl.exporter.matchers import ON_SERVERS_PAGE, matchers_in
from vllm_opsctl.exporter.redaction import host_alone, shown_url

DEFAULT_PORT = 9836

Sli = Literal[
    "availability",
    "time_to_first_token",
    "time_to_first_token_cached",
    "inter_token_latency",
    "e2e_latency",
    "queue_time",
]

SLI_CONCEPTS: dict[str, str] = {
    "time_to_first_token": "time_to_first_token_seconds",
    "time_to_first_token_cached": "time_to_first_token_cached_seconds",
    "inter_token_latency": "inter_token_latency_seconds",
    "e2e_latency": "request_e2e_seconds",
    "queue_time": "request_queue_seconds",
}
"""The histogram behind each latency SLI."""


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        # not repeated here: it may be the secret itself
        raise ValueError("not the name of an environment variable; put the key there, not here")
    return text


VariableName = Annotated[str, AfterValidator(_variable)]


TAP_ONLY = "tap:"
"""The URL of a target that is read by its tap pages alone."""


BUCKET_FAMILIES: dict[str, tuple[str, ...]] = {
    "time_to_first_token": ("time_to_first_token_seconds",),
    "inter_token_latency": ("inter_token_latency_seconds",),
    "request_latency": ("request_e2e_seconds", "request_queue_seconds"),
}
"""
The families of vLLM's --custom-histogram-buckets that objectives' histograms belong to.

Source:
    vllm/v1/metrics/buckets.py and loggers.py, 0.32.0.
"""


def _arn(text: str) -> str:
    if not re.fullmatch(r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]+(\.fifo)?", text):
        # what looks like none at all may be a webhook, whose path is its secret
        is_near = re.fullmatch(r"arn:.*|[A-Za-z-]{1,30}", text)
        shown = f"{text!r} is " if is_near else ""
        raise ValueError(
            f"{shown}not a topic's ARN; write arn:aws:sns:eu-central-1:123456789012:llm-page"
        )
    return text


Arn = Annotated[str, AfterValidator(_arn)]


def _web_url(text: str) -> str:
    parts = _split(text)
    if parts is None or parts.scheme not in ("http", "https") or not _is_host(parts.hostname):
        # its path may be the secret
        raise ValueError(f"'{host_alone(text)}' is not a URL; write https://host/path")
    if "@" in parts.netloc:
        # not repeated here: it holds the secret
        raise ValueError("the URL holds credentials; give the one without them")
    try:
        parts.port  # noqa: B018 - raises for what is none
    except ValueError:
        raise ValueError(f"'{host_alone(text)}' has no valid port") from None
    return text.strip().rstrip("/")


def _link(text: str) -> str:
    """The beginning of a URL that pages and verdicts show to everybody: without the credentials in it."""
    before, slashes, rest = text.partition("//")
    host, slash, path = rest.partition("/")
    return f"{before}{slashes}{host.rpartition('@')[2]}{slash}{path}" if slashes else text


WebUrl = Annotated[str, AfterValidator(_web_url)]


class Service(Strict):
    """What the fleet is called."""

    name: Slug = Field(
        "vllm",
        max_length=128,
        description="Name of the service: the label `service`, and in every name that is derived.",
    )

    @field_validator("name", mode="before")
    @classmethod
    def _is_text(cls, name: object) -> object:
        if not isinstance(name, str):
            raise ValueError('put it in quotes, such as name: "2"')
        return name


class Target(Strict):
    """One vLLM endpoint."""

    name: Slug = Field(description="Name of the replica; the label `target`.")
    url: str = Field(
        description="Base URL of the server, e.g. http://chat-0:8000; tap: has tap pages alone."
    )
    metrics_path: str = Field("/metrics", description="Path of the metrics page.")
    api_key_env: VariableName | None = Field(
        None, description="Environment variable that holds the API key."
    )
    api_key_file: str | None = Field(None, description="File that holds the API key.")

    ca_file: str | None = Field(
        None,
        description="File of the CA that signed the certificate of an https server; unset: SSL_CERT_FILE, "
        "else the usual ones.",
    )

    models: tuple[str, ...] = Field(
        (),
        description="Models and adapters that it should serve; diagnosis tells which are missing.",
    )
    max_model_len: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Longest context that it should accept, tokens."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_url(cls, data: Any) -> Any:
        """A bare URL is a target named after its host and port."""
        if isinstance(data, str):
            data = {"url": data}
        if isinstance(data, dict) and "name" not in data and isinstance(data.get("url"), str):
            return {"name": name_of(data["url"]), **data}
        return data

    @field_validator("url")
    @classmethod
    def _base_url(cls, url: str) -> str:
        return url if url == TAP_ONLY else clean_url(url)

    @field_validator("metrics_path")
    @classmethod
    def _path(cls, path: str) -> str:
        # what has no slash before it would become a part of the host
        if not path.startswith("/") or not path.isprintable() or " " in path:
            raise ValueError("not a path; write /metrics")
        return path

    @property
    def is_tap_only(self) -> bool:
        """It has no address: its tap pages are all there is to read."""
        return self.url == TAP_ONLY

    @model_validator(mode="after")
    def _one_key(self) -> Target:
        if self.api_key_env and self.api_key_file:
            raise ValueError("api_key_env and api_key_file are both set; keep one")
        return self


class Objective(Strict):
    """Good events over total events, and the share that must be good."""

    name: Slug = Field(description="Name of the objective; the label `objective`.")
    sli: Sli = Field(description="What is counted.")
    threshold: Duration | None = Field(
        None, description="Longest good duration; not for availability."
    )
    target: Ratio = Field(description="Share of good events over 30 days, e.g. 99.9%.")
    model: str | None = Field(
        None, description="Served name of the one model that it is for; every model when unset."
    )
    notify: Literal["page", "ticket"] = Field(
        "page", description="What a fast burn does: page somebody, or open a ticket."
    )
    bucket_policy: Literal["exact", "stricter", "looser"] = Field(
        "exact",
        description="A threshold that is no bucket bound: refuse it, or use the bound below or above.",
    )
    description: str | None = Field(None, description="What it promises to whom, for people.")

    @model_validator(mode="after")
    def _threshold_fits(self) -> Objective:
        if self.sli == "availability" and self.threshold is not None:
            raise ValueError("availability has no threshold; remove it")
        if self.sli != "availability" and self.threshold is None:
            raise ValueError(f"{self.sli} needs a threshold, e.g. threshold: 1s")
        return self


DEFAULT_OBJECTIVES = (
    Objective(name="availability", sli="availability", target=0.999),
    Objective(name="ttft", sli="time_to_first_token", threshold=1.0, target=0.95),
    Objective(name="ttft-returning", sli="time_to_first_token_cached", threshold=0.18, target=0.95),
    Objective(name="inter-token-latency", sli="inter_token_latency", threshold=0.1, target=0.99),
    Objective(name="e2e", sli="e2e_latency", threshold=1.5, target=0.99),
    Objective(name="queue-time", sli="queue_time", threshold=0.3, target=0.95),
)
"""
A multi-turn chatbot's: P99 end to end 1,400 ms, TTFT without a prefix hit ~900 ms, each moved to the
next of vLLM's default bucket bounds so that it can be counted exactly; TTFT of a returning user
~180 ms, which the tap alone can tell.
"""


class FlightRecorder(Strict):
    """The sidecar's memory of the last minutes."""

    keep: Duration = Field(1800.0, description="How far back it goes.")
    max_memory: Size = Field(
        64 * 2**20, description="Bound per target; the oldest observations go first."
    )
    save_to: str | None = Field(
        None,
        description="Recording written on SIGTERM (.jsonl.gz), so that a restart loses nothing.",
    )


_USER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\$?")
_MAX_USER_CHARS = 64
_NO_USER = 2**32 - 1
"""The number that chown(2) takes for "leave it"."""


class Tap(Strict):
    """The statistics pages that vLLM keeps with the tap (docs/tap.md)."""

    dir: str | None = Field(
        None, description="Folder of the pages, as OPSCTL_TAP names it to vLLM; unset: no pages."
    )
    keep_dead: Duration = Field(
        3600.0, description="How long the page of a dead process stays after it was read."
    )
    owner: int | str | None = Field(
        None,
        description="User, by number or name, whose pages are believed as well: the engine's, where "
        "it is not the sidecar's own and they share no group.",
    )

    @field_validator("dir")
    @classmethod
    def _absolute(cls, folder: str | None) -> str | None:
        if folder is not None and not folder.startswith("/"):
            raise ValueError(f"{folder!r} is not an absolute path; write /dev/shm/vllm-opsctl")
        return folder

    @field_validator("owner", mode="before")
    @classmethod
    def _user(cls, owner: object) -> int | str | None:
        if owner is None:
            return None
        text = "" if isinstance(owner, bool | float) else str(owner)[:_MAX_USER_CHARS]
        # a variable of the environment is text
        if text.isascii() and text.isdigit() and int(text) < _NO_USER:
            return int(text)
        if not _USER_NAME.fullmatch(text):
            shown = repr(owner)[:_MAX_USER_CHARS]
            raise ValueError(f"{shown} is neither a user's number nor a name; write 1000, or vllm")
        return text


class CloudWatch(Strict):
    """Few metrics of the fleet for CloudWatch (docs/cloudwatch.md)."""

    sink: Literal["off", "put", "emf", "otlp"] = Field(
        "off",
        description="PutMetricData, lines of embedded metric format, or everything by OTLP.",
    )
    namespace: str = Field(
        "vLLM", pattern=r"^[A-Za-z0-9_./#:-]{1,255}$", description="Namespace of all metrics."
    )
    region: str | None = Field(
        None, description="AWS region; unset: AWS_REGION or AWS_DEFAULT_REGION."
    )
    endpoint_url: WebUrl | None = Field(
        None,
        description="For emulators and VPC endpoints, with otlp any collector's; unset: AWS's own.",
    )
    emf_to: str = Field(
        "stdout",
        pattern=r"^(stdout|/.*|(tcp|udp)://[^/]+)$",
        description="Where lines go: stdout, an absolute path, or the agent's tcp:// or udp:// address.",
    )
    interval: Duration = Field(
        60.0, description="One datum a metric in so long; CloudWatch keeps 60s for 15 days."
    )
    per_target: bool = Field(
        False, description="A dimension Target besides: the price is multiplied by the replicas."
    )
    spool_dir: str | None = Field(
        None, description="Folder of what waits; unset: in memory, lost with the sidecar."
    )
    spool_keep: Duration = Field(
        6 * 3600.0, description="How long an outage of CloudWatch may last."
    )

    @field_validator("emf_to")
    @classmethod
    def _agent(cls, where: str) -> str:
        if "://" in where:
            try:
                # as a server's URL but for the scheme: a host, a port, no credentials
                clean_url(f"http://{where.partition('://')[2]}")
            except ValueError:
                raise ValueError(
                    f"'{shown_url(where)}' is not an agent's address; write tcp://host:25888"
                ) from None
        return where

    @field_validator("spool_dir")
    @classmethod
    def _absolute(cls, folder: str | None) -> str | None:
        if folder is not None and not folder.startswith("/"):
            raise ValueError(f"{folder!r} is not an absolute path; write /var/lib/opsctl/spool")
        return folder


class Exporter(Strict):
    """The sidecar."""

    listen: str = Field(
        f"127.0.0.1:{DEFAULT_PORT}", description="Address of the sidecar's own server."
    )
    poll_interval: Duration = Field(1.0, description="Time between two reads of a target.")
    timeout: Duration = Field(2.0, description="Longest time that one read may take.")
    max_backoff: Duration = Field(10.0, description="Longest pause between reads of a dead target.")
    labels: dict[str, str] = Field(
        {},
        description="Free labels beside `service`, such as cluster or environment: on every series, "
        "rule and alert.",
    )
    flight_recorder: FlightRecorder = FlightRecorder()
    tap: Tap = Tap()
    cloudwatch: CloudWatch = CloudWatch()

    @field_validator("labels", mode="before")
    @classmethod
    def _are_texts(cls, labels: object) -> object:
        for name, value in labels.items() if isinstance(labels, dict) else ():
            if not isinstance(value, str):
                # YAML has made 10 of 010 already
                raise ValueError(f'{name}: put the value in quotes, such as {name}: "eu"')
        return labels or {}

    @field_validator("labels")
    @classmethod
    def _free(cls, labels: dict[str, str]) -> dict[str, str]:
        check_free_labels(labels)
        return labels

    @field_validator("listen")
    @classmethod
    def _host_port(cls, listen: str) -> str:
        split_listen(listen)
        return listen


class Alarms(Strict):
    """Where alarms go, and what pages and verdicts link to."""

    page_topic: Arn | None = Field(None, description="SNS topic (ARN) that pages somebody.")
    ticket_topic: Arn | None = Field(
        None, description="SNS topic (ARN) of tickets; they go to the webhook when unset."
    )
    region: str | None = Field(
        None, description="AWS region that signs; unset: the one of each topic's ARN."
    )
    api_url: WebUrl | None = Field(
        None, description="SNS endpoint, for emulators and VPC endpoints; unset: AWS's own."
    )
    webhook: WebUrl | None = Field(
        None,
        description="Receiver of the pager's own failures, which SNS cannot tell, and of tickets "
        "without a topic; without a secret in it.",
    )
    deadman_url: WebUrl | None = Field(
        None, description="Dead-man's switch that the watchdog keeps from ringing."
    )
    runbook_url: Annotated[str, AfterValidator(_link)] | None = Field(
        None, description="Base of the runbook pages' URLs; the failure mode's id is appended."
    )
    dashboard_url: WebUrl | None = Field(
        None, description="Board that a page links to; objective and model are appended."
    )
    sidecar_url: WebUrl | None = Field(
        None,
        description="The sidecar as people on call reach it; unset: http:// and exporter.listen.",
    )
    prometheus_url: WebUrl | None = Field(
        None,
        description="The Prometheus as people on call reach it, for diagnosis without a sidecar.",
    )
    alertmanager_url: WebUrl = Field(
        "http://127.0.0.1:9093", description="The Alertmanager, for drills (opsctl alarms test)."
    )
    match: str | None = Field(
        None,
        description="Label matchers of this service's vLLM servers in Prometheus, for --from vllm.",
    )
    read_unlabelled: bool = Field(
        False,
        description="Also read series without `service` or a free label: during an upgrade from 0.1, and "
        "for three days after it.",
    )
    histogram_buckets: dict[str, tuple[float, ...]] | None = Field(
        None,
        description="Bounds that vLLM is given with --custom-histogram-buckets, the same JSON.",
    )

    @field_validator("match", mode="before")
    @classmethod
    def _is_text(cls, text: object) -> object:
        if text is not None and not isinstance(text, str):
            raise ValueError("put it in quotes: match: '{cluster=\"eu\"}'")
        return text

    @field_validator("match")
    @classmethod
    def _matchers(cls, text: str | None) -> str | None:
        """In one form, without braces."""
        if text is None:
            return None
        found = matchers_in(text)
        for one in found:
            if one.label in ON_SERVERS_PAGE and not one.matches(""):
                raise ValueError(
                    f"{one.label} is not on every series of a server; match labels of its target, such as "
                    "namespace or job (an objective of one model has its own key, model)"
                )
        return ",".join(map(str, found))

    @field_validator("histogram_buckets")
    @classmethod
    def _as_vllm_wants_them(
        cls, buckets: dict[str, tuple[float, ...]] | None
    ) -> dict[str, tuple[float, ...]] | None:
        for family, bounds in (buckets or {}).items():
            if family not in BUCKET_FAMILIES:
                known = ", ".join(BUCKET_FAMILIES)
                raise ValueError(f"{family!r} has no objective's histogram; there are {known}")
            ascends = all(a < b for a, b in pairwise((0.0, *bounds)))
            if not bounds or not ascends or math.isinf(bounds[-1]):
                raise ValueError(
                    f"{family}: bounds must be above 0 and ascending, as vLLM wants them"
                )
        return buckets


class Config(Strict):
    """The whole configuration."""

    service: Service = Service()
    targets: tuple[Target, ...] = ()
    objectives: tuple[Objective, ...] = DEFAULT_OBJECTIVES
    exporter: Exporter = Exporter()
    alarms: Alarms = Alarms()
    autoscaling: Autoscaling = Autoscaling()

    @model_validator(mode="after")
    def _tap_is_there(self) -> Config:
        if self.exporter.tap.dir is None and any(target.is_tap_only for target in self.targets):
            raise ValueError("a target has the URL tap:, which needs exporter.tap.dir; set it")
        return self

    @field_validator("targets", "objectives")
    @classmethod
    def _unique_names(cls, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        seen: set[str] = set()
        for entry in entries:
            if entry.name in seen:
                raise ValueError(f"the name {entry.name!r} stands twice; names must differ")
            seen.add(entry.name)
        return entries


def clean_url(url: str) -> str:
    """
    Check a server's base URL.

    Raises:
        ValueError: Not an http(s) URL with a host, or one with a password in it; shows no password.

    >>> clean_url("chat-0:8000/v1"), clean_url("http://[::1]:8000/metrics")
    ('http://chat-0:8000', 'http://[::1]:8000')
    """
    text = url.strip()
    parts = _split(text if "//" in text else f"http://{text}")
    wrong = f"'{shown_url(text)}' is not a server's URL; write http://host:8000"
    if parts is None or parts.scheme not in ("http", "https"):
        raise ValueError(f"{wrong} or http://[::1]:8000" if "[" in text else wrong)
    if "@" in text:
        # wherever it stands: a password may have a slash or a question mark in it
        raise ValueError(
            "the URL holds credentials; name them with api_key_env or api_key_file instead"
        )
    host = parts.hostname or ""
    if "%" in host and ":" in host:
        raise ValueError(
            f"'{shown_url(text)}' has a zone (%); write the address without it, or a host name"
        )
    try:
        port = parts.port
        if port == 0:
            raise ValueError
    except ValueError:
        hint = "; an IPv6 address stands in brackets" if parts.netloc.count(":") > 1 else ""
        raise ValueError(
            f"'{shown_url(text)}' has no valid port; write http://host:8000{hint}"
        ) from None
    if not _is_host(host) or (port is None and host in ("http", "https")):
        raise ValueError(wrong)
    path = parts.path.rstrip("/").removesuffix("/metrics").removesuffix("/v1")
    return f"{parts.scheme}://{bracketed(host)}{f':{port}' if port else ''}{path}"


def _split(text: str) -> SplitResult | None:
    """The parts of a URL; None where it cannot have any."""
    if not text.isprintable() or " " in text.strip():
        return None
    try:
        return urlsplit(text.strip())
    except ValueError:
        # brackets around what is no IPv6 address
        return None


def _is_host(host: str | None) -> bool:
    if not host:
        return False
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host).scope_id is None
        except ValueError:
            return False
    return all(c.isalnum() or c in "._-" for c in host)


def bracketed(host: str) -> str:
    """
    A host as URLs and addresses write it.

    >>> bracketed("::1"), bracketed("chat-0")
    ('[::1]', 'chat-0')
    """
    return f"[{host}]" if ":" in host else host


def name_of(url: str) -> str:
    """
    The name of a target that was given as a URL: its host, port and path.

    An IPv6 address has no brackets there, and begins with a digit, as CloudWatch wants names to.

    >>> name_of("http://chat-0:8000/metrics"), name_of("https://gateway/embed")
    ('chat-0:8000', 'gateway-embed')
    >>> name_of("http://[::1]:8000"), name_of("http://[fd00::7]:8000/v1")
    ('0::1:8000', 'fd00::7:8000')
    """
    try:
        parts = urlsplit(clean_url(url))
    except ValueError:
        return "invalid"
    at = re.sub(r"[\[\]]", "", parts.netloc) + parts.path
    name = re.sub(r"[^A-Za-z0-9_.:-]", "-", f"0{at}" if at.startswith(":") else at)
    return name if name[0].isalnum() else f"host{name}"


def split_listen(listen: str) -> tuple[str, int]:
    """
    Take an address apart.

    Raises:
        ValueError: Not ``host:port``.

    >>> split_listen("127.0.0.1:9836"), split_listen("[::1]:9836")
    (('127.0.0.1', 9836), ('::1', 9836))
    """
    host, colon, port = listen.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else None
    is_host = not host or (_is_host(host) and ":" not in host if inner is None else _is_host(inner))
    if not colon or not is_port or not is_host or (inner is not None and ":" not in inner):
        hint = ""
        if "%" in host:
            hint = "; without a zone (%)"
        elif host.count(":") and "/" not in host:
            hint = f"; an IPv6 address stands in brackets: [::]:{DEFAULT_PORT}"
        raise ValueError(
            f"'{shown_url(listen)}' is not an address; write host:port, e.g. "
            f"0.0.0.0:{DEFAULT_PORT}{hint}"
        )
    return inner or host or "0.0.0.0", int(port)  # noqa: S104 - as ":9836" asks for

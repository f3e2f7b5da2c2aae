"""
Asks a Grafana, and says in words why it does not answer as it should.

Source:
    Statuses of refusals: pkg/services/dashboards/errors.go of Grafana 10 to 12.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests

from vllm_opsctl.errors import BadPage, SourceError, Unreachable, UsageError
from vllm_opsctl.exporter.config import clean_url
from vllm_opsctl.exporter.json_text import read_json
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.redaction import shown_url, without_secrets
from vllm_opsctl.exporter.sources.http import Answer, get, new_session

TRIES = 3
LONGEST_WAIT_S = 30.0
"""What a Retry-After may ask for; who asks for more is not waited for."""

_TIMEOUT_S = 30.0
_MAX_BYTES = 2**26
_BUSY = (429, 503)


class GrafanaHttp:
    """
    The HTTP of a Grafana.

    Args:
        url: Base URL.
        token: Of a service account; None where nobody needs one.
        wait: Sleeps before a question is asked again.

    Raises:
        UsageError: The URL or the token can be none.
    """

    def __init__(
        self, url: str, token: str | None = None, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self.url = _base(url)
        if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
            raise UsageError(
                "the token has spaces or other characters that no token of Grafana's has"
            )
        self._token = token
        self._wait = wait
        self._session = new_session(token)
        self._headers: Mapping[str, str] = {}
        self._session.hooks["response"].append(self._keep_headers)

    def ask(
        self,
        method: str,
        path: str,
        *,
        may: str = "",
        body: object = None,
        missing_is_none: bool = False,
    ) -> Any:
        """
        Ask, again after a pause where it is too busy.

        Args:
            method: HTTP method.
            path: Below the base URL.
            may: Permission that the token needs for it, for messages.
            body: Sent as JSON.
            missing_is_none: Give None for what it does not have.

        Returns:
            Its JSON.

        Raises:
            Unreachable: Nothing answers.
            BadPage: It refuses, or is no Grafana.
        """
        answer = self._answer(method, path, body)
        if 300 <= answer.status < 400:
            raise self._redirected(answer.status)
        said = self._json(answer)
        if answer.status < 300 and said is not None:
            return said
        if answer.status == 404 and missing_is_none and isinstance(said, dict):
            return None
        raise self._refused(answer.status, path, may, said)

    def _answer(self, method: str, path: str, body: object) -> Answer:
        for attempt in range(1, TRIES + 1):
            try:
                answer = get(
                    self._session,
                    f"{self.url}{path}",
                    timeout_s=_TIMEOUT_S,
                    max_bytes=_MAX_BYTES,
                    headers={"Accept": "application/json"},
                    method=method,
                    json=body,
                )
            except Unreachable as problem:
                raise Unreachable(problem.reason, f"--url {problem.detail}") from None
            wait_s = _retry_after(self._headers.get("Retry-After"), attempt)
            if answer.status not in _BUSY or attempt == TRIES or wait_s > LONGEST_WAIT_S:
                break
            self._wait(wait_s)
        return answer

    def _keep_headers(self, response: requests.Response, *_: object, **__: object) -> None:
        self._headers = response.headers

    @staticmethod
    def _json(answer: Answer) -> Any:
        try:
            return read_json(answer.body)
        except ValueError:
            return None

    # -- what went wrong ---------------------------------------------------------------------------

    def _refused(self, status: int, path: str, may: str, said: Any) -> SourceError:
        where = f"--url {self.url}"
        why = self._message(said)
        if status == 401:
            fix = (
                "give a service account's token with --token-env"
                if self._token is None
                else "the token is wrong, expired or of another organization"
            )
            return BadPage("unauthorized", f"{where}: HTTP 401{why}; {fix}")
        if status == 403:
            return BadPage(
                "forbidden",
                f"{where}: HTTP 403 to {path.partition('?')[0]}{why}; the token needs {may or 'more rights'}",
            )
        if status in _BUSY:
            return BadPage("busy", f"{where}: HTTP {status}{why}, {TRIES} times; try again later")
        if said is None:
            return self.no_grafana(f"HTTP {status}")
        if status in (409, 412):
            fix = {
                "version-mismatch": "; somebody saved it meanwhile: look at diff, and push again",
                "name-exists": "; rename or move the other board, or push with another --folder",
                "plugin-dashboard": "; it belongs to a plugin of Grafana's",
            }.get(str(said.get("status")) if isinstance(said, dict) else "", "")
            return BadPage("conflict", f"{where}: HTTP {status}{why}{fix}")
        if status == 404:
            return BadPage(
                "not-found",
                f"{where}: HTTP 404 to {path.partition('?')[0]}{why}; give the base URL, with the path that "
                "root_url has",
            )
        return BadPage("refused", f"{where}: HTTP {status} to {path.partition('?')[0]}{why}")

    def _message(self, said: Any) -> str:
        text = said.get("message") if isinstance(said, dict) else None
        if not isinstance(text, str) or not text.strip():
            return ""
        # what stands before a Grafana may repeat what it was sent; hidden before it is cut
        shown = without_secrets(" ".join(text.split()), [self._token] if self._token else [])
        return f" ({plain(shown, 300)})"

    def _redirected(self, status: int) -> BadPage:
        to = shown_url(self._headers.get("Location", "")).partition("?")[0]
        if "login" in to.lower() or "auth" in to.lower():
            return BadPage(
                "login",
                f"--url {self.url}: HTTP {status} to a login page ({to}); a proxy before Grafana wants its "
                "own login, or the token is not taken: give a URL behind it",
            )
        return BadPage(
            "redirected",
            f"--url {self.url}: HTTP {status} to {to or 'nowhere'}; give the URL that it leads to (the token "
            "is not sent after a redirect)",
        )

    def no_grafana(self, what: str) -> BadPage:
        """
        The error of an answer that a Grafana does not give.

        Args:
            what: What came instead.
        """
        return BadPage(
            "not-a-grafana",
            f"--url {self.url}: {what}, but not what Grafana's API answers; give the base URL "
            "(https://HOST/PATH) behind any login page",
        )


def _base(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url {shown_url(url)}: not a URL; write https://HOST")
    try:
        return clean_url(url)
    except ValueError as problem:
        if "credentials" in str(problem):
            raise UsageError(
                "--url: it holds credentials; name a variable with a token: --token-env"
            ) from None
        raise UsageError(f"--url: {problem}") from None


def _retry_after(header: str | None, attempt: int) -> float:
    """Seconds to wait: as it asks, in seconds or with a date (RFC 9110, 10.2.3); else 1 s, then 2 s."""
    if header is None:
        return float(2 ** (attempt - 1))
    if header.strip().isdigit():
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return float(2 ** (attempt - 1))
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())

"""
One deadline for a whole HTTP exchange, enforced from outside of it.

A socket's timeout starts anew with every byte, so a server that drips its status line, a header, a
chunk's size or a trailer holds a reader for ever. Here one thread watches all exchanges and shuts the
connection down when its time is over: whatever the reader waits for then ends at once.
"""

from __future__ import annotations

import contextlib
import heapq
import ipaddress
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

_LEAST_S = 1e-3
"""A socket's timeout of 0 would mean: do not wait at all."""


class Deadline:
    """
    The end of one exchange; a context manager, and the current one of its thread within it.

    Args:
        seconds: From now.
    """

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds
        self.expired = False
        self._lock = threading.Lock()
        self._guarded: list[socket.socket] = []

    def left(self) -> float:
        """Seconds, above 0 even when the time is over."""
        return max(_LEAST_S, self.at - time.monotonic())

    def guard(self, connection: socket.socket) -> None:
        """
        Shut this connection down at the deadline.

        The descriptor is duplicated: TLS takes the socket over while it shakes hands, and a number
        that was closed meanwhile may be another connection's.
        """
        twin = socket.socket(fileno=os.dup(connection.fileno()))
        with self._lock:
            if not self.expired:
                self._guarded.append(twin)
                return
        _shut(twin)

    def expire(self) -> None:
        """The time is over."""
        with self._lock:
            self.expired = True
            guarded, self._guarded = self._guarded, []
        for twin in guarded:
            _shut(twin)

    def __enter__(self) -> Deadline:
        self._token = _current.set(self)
        _watchdog.watch(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _current.reset(self._token)
        with self._lock:
            # whoever asks afterwards gets what the clock says, not what the watchdog got round to
            self.expired = self.expired or time.monotonic() >= self.at
            guarded, self._guarded = self._guarded, []
        for twin in guarded:
            twin.close()

    @property
    def is_over(self) -> bool:
        """The time is over, whether the watchdog has noticed or not."""
        return self.expired or time.monotonic() >= self.at


def _shut(twin: socket.socket) -> None:
    with contextlib.suppress(OSError):
        twin.shutdown(socket.SHUT_RDWR)
    twin.close()


class _Watchdog:
    """One thread that expires deadlines; started with the first, and again in a forked child."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Deadline]] = []
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def watch(self, deadline: Deadline) -> None:
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            heapq.heappush(self._waiting, (deadline.at, next(self._numbers), deadline))
            if self._waiting[0][2] is deadline:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                pause = self._waiting[0][0] - time.monotonic()
                if pause > 0:
                    self._changed.wait(pause)
                    continue
                _, _, deadline = heapq.heappop(self._waiting)
            deadline.expire()


_watchdog = _Watchdog()
os.register_at_fork(after_in_child=_watchdog.__init__)  # type: ignore[misc]
_current: ContextVar[Deadline] = ContextVar("deadline")


class _Guarded:
    """What both kinds of connection do: everything within the current deadline."""

    sock: Any
    _dns_host: str
    host: str
    port: int
    socket_options: Any

    def _new_conn(self) -> socket.socket:
        deadline = _current.get()
        try:
            found = _resolved(self._dns_host, self.port, deadline.left())
        except socket.gaierror as problem:
            raise NameResolutionError(self.host, self, problem) from problem  # type: ignore[arg-type]
        except FutureTimeoutError as problem:
            raise ConnectTimeoutError(self, "the name's resolver does not answer") from problem
        failed: OSError = OSError("the name has no address")
        for index, (family, kind, protocol, _, address) in enumerate(found):
            # a first address that swallows everything must leave time for the next
            share = deadline.left() / (len(found) - index)
            try:
                return self._connected(family, kind, protocol, address, share, deadline)
            except OSError as problem:
                failed = problem
        if isinstance(failed, TimeoutError):
            raise ConnectTimeoutError(self, "no connection in time") from failed
        raise NewConnectionError(self, f"no connection: {failed}") from failed  # type: ignore[arg-type]

    def _connected(
        self, family: int, kind: int, protocol: int, address: Any, share: float, deadline: Deadline
    ) -> socket.socket:
        opened = socket.socket(family, kind, protocol)
        try:
            for option in self.socket_options or ():
                opened.setsockopt(*option)
            opened.settimeout(share)
            deadline.guard(opened)
            opened.connect(address)
            opened.settimeout(deadline.left())
        except BaseException:
            opened.close()
            raise
        return opened

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            # kept from an earlier exchange, or wrapped in TLS just now
            _current.get().guard(self.sock)
        super().request(*args, **kwargs)  # type: ignore[misc]


class _Connection(_Guarded, HTTPConnection):
    pass


class _TLSConnection(_Guarded, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class GuardedAdapter(HTTPAdapter):
    """Connections for requests that end with the current :class:`Deadline`."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """As requests does, with other pools."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


def guard_aws(client: Any, seconds: float) -> None:
    """
    Give each request of a boto3 client one deadline.

    Args:
        client: Of any service.
        seconds: For one attempt.

    Source:
        botocore/endpoint.py and httpsession.py, 1.40: a client's endpoint sends by its session, whose
        pools are chosen by scheme.
    """
    from botocore.awsrequest import AWSHTTPConnection, AWSHTTPSConnection
    from botocore.exceptions import ReadTimeoutError

    class Connection(_Guarded, AWSHTTPConnection):  # type: ignore[misc]
        pass

    class TLSConnection(_Guarded, AWSHTTPSConnection):  # type: ignore[misc]
        pass

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class TLSPool(HTTPSConnectionPool):
        ConnectionCls = TLSConnection

    session = client._endpoint.http_session
    session._manager.pool_classes_by_scheme = {"http": Pool, "https": TLSPool}

    send = session.send

    def send_in_time(request: Any) -> Any:
        with Deadline(seconds) as deadline:
            try:
                return send(request)
            finally:
                if deadline.is_over:
                    # whatever it looks like: the connection was shut down
                    raise ReadTimeoutError(endpoint_url=request.url)

    session.send = send_in_time


class GuardedSession(requests.Session):
    """
    A session whose requests end with the current :class:`Deadline`, and that sees no redirects.

    Source:
        requests/sessions.py, 2.34: also where redirects are not to be followed, ``send`` looks where
        one leads, and for that reads and unpacks all of its body.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mount("http://", GuardedAdapter())
        self.mount("https://", GuardedAdapter())

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Nowhere: to requests no answer is a redirect."""
        return None


_resolving: dict[tuple[str, int], Future[list[Any]]] = {}
_resolving_lock = threading.Lock()


def _resolved(host: str, port: int, within_s: float) -> list[Any]:
    """
    The addresses of a host.

    A resolver cannot be interrupted, so a thread asks it: one for each host, however many wait.

    Raises:
        socket.gaierror: There is no such host.
        concurrent.futures.TimeoutError: The resolver did not answer in time.
    """
    literal = host.strip("[]")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(literal.partition("%")[0])
        return socket.getaddrinfo(literal, port, 0, socket.SOCK_STREAM)
    with _resolving_lock:
        asked = _resolving.get((host, port))
        if asked is None:
            asked = Future()
            threading.Thread(
                target=_resolve, args=(host, port, asked), name=f"resolve {host}", daemon=True
            ).start()
            # only now: where no thread can be had, the next one who asks tries again
            _resolving[host, port] = asked
    return asked.result(within_s)


def _resolve(host: str, port: int, asked: Future[list[Any]]) -> None:
    try:
        asked.set_result(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
    except Exception as problem:
        asked.set_exception(problem)
    finally:
        with _resolving_lock:
            _resolving.pop((host, port), None)


def causes(problem: BaseException) -> Iterator[BaseException]:
    """An exception and all that it wraps, the outermost first: libraries hide causes in three ways."""
    seen: set[int] = set()
    waiting: list[object] = [problem]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]

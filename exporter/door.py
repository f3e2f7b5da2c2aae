"""
The sidecar's door: waitress, with bounds on what one client may hold.

Whoever connects and then says nothing, says it slowly, sends what nobody asked for or does not read
the answer, holds a connection for seconds. Where there are too many, the oldest idle one of the same
peer makes room for the newest: a probe that asks and goes is always answered.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from vllm_opsctl.errors import ServeError
from vllm_opsctl.exporter.limits import (
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_OF_ONE_PEER,
    MAX_REQUEST_BODY_BYTES,
    MAX_REQUEST_HEADER_BYTES,
)

HTTP_THREADS = 8
"""More than recordings may be sent at once, so that /livez and /metrics always find one."""

REQUEST_TIMEOUT_S = 5.0
"""From a request's first byte, or the connection's begin, to its last byte."""

IDLE_TIMEOUT_S = 150.0
"""Between two requests on one connection: a Prometheus scrapes every two minutes at the least."""

SEND_TIMEOUT_S = 30.0
"""Without a byte of the answer taken."""

ANSWER_TIMEOUT_S = 300.0
"""For all that is to be sent: a client that takes a byte a second would never be done."""

MAX_PIPELINED = 8
"""Requests of one connection that wait for each other."""

PROBES = frozenset(("/livez", "/readyz"))
"""Requests that wait for no other: whoever asks restarts the sidecar where no answer comes."""

SPARE_DESCRIPTORS = 16
"""Held back for clients where pollers have taken all others."""

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_PAUSE_S = 1.0
_TELL_EVERY_S = 60.0

WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]

log = logging.getLogger(__name__)


class _Channel(HTTPChannel):  # type: ignore[misc]
    """One connection that knows how long its client has taken."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._request_began: float | None = time.time()
        self._sends_since: float | None = None

    def received(self, data: bytes) -> Any:
        """Note when a request begins, and that it is complete."""
        if self._request_began is None:
            self._request_began = time.time()
        taken = super().received(data)
        if self.request is None:
            self._request_began = None
        if len(self.requests) > MAX_PIPELINED:
            self.let_go()
        return taken

    def service(self) -> None:
        """Answer the next request, if its client has taken the answer before."""
        # with the lock, for whoever has just sent the last of it may not have counted it yet
        with self.outbuf_lock:
            pending = self.total_outbufs_len
        if not pending:
            with contextlib.suppress(ClientDisconnected):
                super().service()
            return
        # answers that wait for each other hold a thread each; no scraper and no browser asks so
        with self.requests_lock:
            while self.requests:
                self.requests.pop().close()
        self.let_go()

    def _flush_outbufs_below_high_watermark(self) -> None:
        """Wait for a slow client, unless it has asked for more already."""
        if len(self.requests) > 1 and self.total_outbufs_len > self.adj.outbuf_high_watermark:
            self.let_go()
            raise ClientDisconnected
        super()._flush_outbufs_below_high_watermark()

    def let_go(self) -> None:
        """
        Close the connection by the loop's next turn.

        Not at once: a descriptor that was free in the middle of a turn would be the next connection's,
        and get what poll(2) has said of the old one. Shut down, for waitress' ``will_close`` alone waits
        until the client takes something.
        """
        self.will_close = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.server.pull_trigger()

    @property
    def is_waiting(self) -> bool:
        """Nothing is done for it, nothing is sent to it."""
        return not self.requests and not self.total_outbufs_len

    def is_overdue(self, now: float) -> bool:
        """Its client has taken too long; asked every second."""
        if not self.total_outbufs_len:
            self._sends_since = None
        elif self._sends_since is None:
            self._sends_since = now
        if self._sends_since is not None:
            quiet_s, all_s = now - self.last_activity, now - self._sends_since
            return quiet_s > SEND_TIMEOUT_S or all_s > ANSWER_TIMEOUT_S
        if not self.is_waiting:
            return False
        if self._request_began is not None:
            return now - self._request_began > REQUEST_TIMEOUT_S
        return bool(now - self.last_activity > IDLE_TIMEOUT_S)


class _Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]
    """Hands requests to threads in the order in which they came; probes first."""

    def add_task(self, task: _Channel) -> None:
        """Take a channel in whose next request is complete; waitress would log each that waits."""
        with self.lock:
            if task.requests and task.requests[0].path in PROBES:
                self.queue.appendleft(task)
            else:
                self.queue.append(task)
            self.queue_cv.notify()


class Door(TcpWSGIServer):  # type: ignore[misc]
    """
    The HTTP server.

    Args:
        application: What answers.
        listener: Bound socket, as :func:`listener_on` gives it.
    """

    channel_class = _Channel

    def __init__(self, application: WSGI, listener: socket.socket) -> None:
        settings = Adjustments(
            sockets=[listener],
            threads=HTTP_THREADS,
            ident="opsctl",
            # select(2) knows no descriptor above 1023
            asyncore_use_poll=True,
            cleanup_interval=1,
            max_request_header_size=MAX_REQUEST_HEADER_BYTES,
            max_request_body_size=MAX_REQUEST_BODY_BYTES,
            # ours are the bounds that count
            connection_limit=10 * MAX_CONNECTIONS,
            log_socket_errors=False,
        )
        where = (listener.family, listener.type, listener.proto, listener.getsockname())
        self._spare: list[int] = []
        self._accepts_from = 0.0
        self._told = 0.0
        dispatcher = _Dispatcher()
        dispatcher.set_thread_count(HTTP_THREADS)
        super().__init__(
            application,
            {},
            True,
            listener,
            dispatcher=dispatcher,
            adj=settings,
            bind_socket=False,
            sockinfo=where,
        )
        self._reserve()

    @property
    def url(self) -> str:
        """Where it answers."""
        host = str(self.effective_host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.effective_port}"

    def maintenance(self, now: float) -> None:
        """Close connections whose clients have taken too long; called every second."""
        for channel in list(self.active_channels.values()):
            if channel.is_overdue(now):
                channel.let_go()
        self._reserve()

    def readable(self) -> bool:
        """Whether to accept: not for a moment after the last descriptor has gone."""
        return bool(super().readable()) and time.time() >= self._accepts_from

    def handle_accept(self) -> None:
        """Take the newest connection, if need be in place of an older one."""
        try:
            accepted = self._accepted()
        except OSError as problem:
            if problem.errno in _OUT_OF_DESCRIPTORS:
                self._wait_for_descriptors(problem)
            return
        if accepted is None:
            return
        connection, address = accepted
        with contextlib.suppress(OSError):
            self.set_socket_options(connection)
        if not self._make_room(address[0]):
            connection.close()
            return
        self.channel_class(self, connection, address, self.adj, map=self._map)

    def close(self) -> None:
        """Stop listening."""
        for spare in self._spare:
            os.close(spare)
        self._spare.clear()
        super().close()

    def _accepted(self) -> tuple[socket.socket, Any] | None:
        try:
            return self.accept()  # type: ignore[no-any-return]
        except OSError as problem:
            if problem.errno not in _OUT_OF_DESCRIPTORS or not self._spare:
                raise
        os.close(self._spare.pop())
        return self.accept()  # type: ignore[no-any-return]

    def _make_room(self, peer: str) -> bool:
        """Whether there is room for one more connection of a peer; an idle one goes for it."""
        channels = list(self.active_channels.values())
        channels = [channel for channel in channels if not channel.will_close]
        own = [channel for channel in channels if channel.addr[0] == peer]
        if len(own) >= MAX_CONNECTIONS_OF_ONE_PEER:
            return _close_oldest(own)
        if len(channels) >= MAX_CONNECTIONS:
            return _close_oldest(channels)
        return True

    def _reserve(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._spare) < SPARE_DESCRIPTORS:
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _wait_for_descriptors(self, problem: OSError) -> None:
        """Accept nothing for a moment: a socket that stays readable would make us spin."""
        _close_oldest(list(self.active_channels.values()))
        now = time.time()
        self._accepts_from = now + _PAUSE_S
        if now - self._told >= _TELL_EVERY_S:
            self._told = now
            log.error("no connection can be accepted (%s); raise ulimit -n", problem.strerror)


def _close_oldest(channels: list[_Channel]) -> bool:
    """Close the one that has been waiting longest; where none waits, the one that reads slowest."""
    open_ = [channel for channel in channels if not channel.will_close]
    waiting = [channel for channel in open_ if channel.is_waiting]
    sending = [channel for channel in open_ if channel.total_outbufs_len]
    if not waiting and not sending:
        return False
    oldest = min(waiting or sending, key=lambda channel: channel.last_activity)
    oldest.let_go()
    return True


def listener_on(host: str, port: int) -> socket.socket:
    """
    A bound socket.

    Args:
        host: Name or address, IPv6 without brackets.
        port: 0 for any.

    Raises:
        ServeError: It cannot be had; says why and what to do.
    """
    shown = f"exporter.listen: cannot listen on {f'[{host}]' if ':' in host else host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ServeError(f"{shown} (no such host); write an address of this machine") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as problem:
        listener.close()
        raise ServeError(f"{shown} ({problem.strerror}); {_fix(problem)}") from None
    return listener


def _fix(problem: OSError) -> str:
    if problem.errno == errno.EADDRINUSE:
        return "is another sidecar running?"
    if problem.errno == errno.EADDRNOTAVAIL:
        return "write an address of this machine, or 0.0.0.0 for all of them"
    if problem.errno == errno.EACCES:
        return "choose a port above 1023"
    return "choose another address"


def is_known_host(header: str, listens_on: str) -> bool:
    """
    Whether a Host header may stand on a request to a server that listens on the loopback.

    A page in a browser can have its own name resolve to 127.0.0.1 (DNS rebinding); what it cannot have
    is an address, ``localhost``, or the name that the sidecar listens on.

    >>> is_known_host("127.0.0.1:9836", "127.0.0.1"), is_known_host("evil.example:9836", "127.0.0.1")
    (True, False)
    """
    host = header.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if host.lower() in ("localhost", listens_on.lower()):
        return True
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False

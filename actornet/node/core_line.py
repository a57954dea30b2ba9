"""The owner system's end of one core's rings."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from actornet.engine.asks import ask_reply, push_reply
from actornet.engine.ring import Ring
from actornet.errors import NodeError
from actornet.limits import REPLY_BACKLOG_MAX
from actornet.node import exchange
from actornet.node.exchange import Answer


class CoreLine(Protocol):
    """How an owner system hears one core, and answers it."""

    sequence: int
    """Requests of the core that were answered, or took effect, since it attached, which is the first."""
    pending: deque[tuple[int, int]]
    """(LSN, sequence) of the core's requests above the watermark, in order, an entry per turn."""
    detached: bool

    @property
    def waiting(self) -> int:
        """Messages that found the ring full."""

    @property
    def requested(self) -> bool:
        """Whether requests wait."""

    @property
    def heard(self) -> bool:
        """Whether the core has taken all that was sent to it."""

    def requests(self, limit: int) -> list[bytes]:
        """The next requests, at most `limit`."""

    def send(self, answer: Answer) -> None:
        """A message to the core, behind those that wait."""

    def reply(self, reply: bytes) -> None:
        """The reply to the core's next request, which is an ask."""

    def flush(self) -> None:
        """Wake the core if something was sent since the last time."""

    def wake(self) -> None:
        """Wake the core: the control page has changed."""

    def restart(self) -> None:
        """The core has (re)started: its requests are counted from 1 again, and what waits for it is void."""


class RingLine:
    """A core's line through its rings.

    What is sent is announced by `flush`: to wake a core costs more than to send it a message.
    """

    def __init__(self, requests: Ring, replies: Ring) -> None:
        self.sequence = 0
        self.pending: deque[tuple[int, int]] = deque()
        self.detached = False
        self.requests = requests.pop_many
        self._requests = requests
        self._replies = replies
        self._backlog: deque[bytes] = deque()
        self._unannounced = False

    @property
    def waiting(self) -> int:
        return len(self._backlog)

    @property
    def requested(self) -> bool:
        return len(self._requests) > 0

    @property
    def heard(self) -> bool:
        return not self._backlog and len(self._replies) == 0

    def send(self, answer: Answer) -> None:
        self._send(exchange.encode(answer))

    def reply(self, reply: bytes) -> None:
        self.sequence += 1
        self._unannounced = True
        if self._backlog or not push_reply(self._replies, self.sequence, reply):
            self._send(ask_reply(self.sequence, reply))

    def flush(self) -> None:
        if self._unannounced:
            while self._backlog and self._replies.push(self._backlog[0]):
                self._backlog.popleft()
            self._unannounced = bool(self._backlog)
            self._replies.wake()

    def wake(self) -> None:
        self._replies.wake()

    def restart(self) -> None:
        self.sequence = 0
        self.detached = False
        self.pending.clear()
        self._backlog.clear()

    def fileno(self) -> int:
        """Readable when requests wait, between `sleep_begin` and `sleep_end`."""
        return self._requests.fileno()

    def sleep_begin(self) -> bool:
        """Have requests wake this process; False if there are some."""
        return self._requests.sleep_begin()

    def sleep_end(self) -> None:
        self._requests.sleep_end()

    def _send(self, data: bytes) -> None:
        self._unannounced = True
        if self._backlog or not self._replies.push(data):
            self._backlog.append(data)
            if len(self._backlog) > REPLY_BACKLOG_MAX:
                raise NodeError(
                    f"ring {self._replies.name}: {REPLY_BACKLOG_MAX} messages wait for the core; it does not keep up"
                )

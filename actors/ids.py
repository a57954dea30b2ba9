"""An intrusion detection system over TCP streams: what clients send is searched for patterns, whoever attacks is shut out.

Rules are `name=pattern`: regular expressions, without regard to case, over the bytes in order with URL encoding undone. An
attack cut into segments, sent backwards, or overlapped with other bytes is found all the same, for what is searched is what
the server gets: segments wait until those before them have been searched, and a retransmission passes as the original did. An
RST, SYN or FIN that the server ignores ends nothing here either, nor does a pause of two hours.

On a match the connection is reset at both ends, and later ones of that client are refused; with `block` off, both only are
noted. Alerts and blocked clients are the state of one owner, so a backup knows them too. After `depth_bytes` of a client
without a match the rest of its connection goes without Python.

A pattern may lie across segments, up to `TAIL_BYTES`; that tail is the core's own, so the few bytes before a takeover are not
searched together with those behind it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any
from urllib.parse import unquote_plus

from actornet import DROP, REJECT, Direction, FiveTuple, Owner, Packet, StreamActor, Struct, Verdict, setting

TCP = 6
TAIL_BYTES = 512
EXCERPT_CHARS = 120
ALERTS_MAX = 10_000
HOSTS_MAX = 100_000


class Alert(Struct, frozen=True):
    """A rule that matched: in which connection, when (seconds since 1970), on which text."""

    rule: str
    flow: FiveTuple
    time: float
    excerpt: str


class Incidents(Struct):
    """The newest alerts, and until when which clients are shut out."""

    block: bool
    block_s: float
    alerts: list[Alert] = []
    blocked: dict[str, float] = {}


class Sentinel(Owner[Incidents]):
    """Keeps what has happened, and decides who is shut out."""

    def alert(self, rule: str, flow: FiveTuple, excerpt: str) -> bool:
        """A rule has matched; whether the connection is to be ended."""
        state = self.state
        if len(state.alerts) == ALERTS_MAX:
            del state.alerts[0]
        state.alerts.append(Alert(rule, flow, self.now, excerpt))
        if state.block:
            if flow.source not in state.blocked and len(state.blocked) == HOSTS_MAX:
                del state.blocked[next(iter(state.blocked))]
            state.blocked[flow.source] = self.now + state.block_s
        return state.block

    def is_blocked(self, host: str) -> bool:
        until = self.state.blocked.get(host)
        if until is not None and until <= self.now:
            del self.state.blocked[host]
            return False
        return until is not None


@cache
def compiled(rule: str) -> tuple[str, re.Pattern[str]]:
    """Name and pattern of a rule. Raises ValueError that quotes it."""
    name, equals, pattern = rule.partition("=")
    if not equals:
        raise ValueError(f"rule {rule!r}: write name=pattern")
    try:
        return name, re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"rule {rule!r}: its pattern is none: {error}") from None


class IDS(StreamActor):
    """One connection; its client's bytes are searched before they pass."""

    inline = True
    rules = setting(
        [
            r"sql-injection=union(\s+all)?\s+select|'\s*(or|and)\s+\d+\s*=\s*\d+",
            r"cross-site-scripting=<script|javascript:|\bon(error|load)\s*=",
            r"path-traversal=(\.\./){3}",
        ],
        "name=pattern, several separated by commas",
        check=lambda rules: list(map(compiled, rules)),
    )
    block = setting(True, "end attacking connections, and shut their clients out")
    block_s = setting(600.0, "for so long", least=0.0)
    depth_bytes = setting(1 << 20, "bytes of a client that are searched in one connection", least=1)
    verify_checksums = setting(True, "off for captures taken at a host that leaves checksums to its interface")
    sentinel = Sentinel.named("sentinel", block=block, block_s=block_s)

    _tail: bytes = b""
    _searched: int = 0

    async def on_open(self, packet: Packet) -> Verdict | None:
        if await self.sentinel.is_blocked(packet.source):
            return DROP
        super().on_open(packet)
        return None

    async def on_data(self, direction: Direction, data: bytes) -> Any:
        if direction is Direction.REPLY:
            return None
        seen = self._tail + data
        text = unquote_plus(seen.decode("latin-1"), "latin-1")
        for rule in self.rules:
            name, pattern = compiled(rule)
            found = pattern.search(text)
            if found:
                self._tail = b""
                excerpt = text[max(0, found.start() - EXCERPT_CHARS // 2) :][:EXCERPT_CHARS]
                self.on_alert(name, excerpt)
                return REJECT if await self.sentinel.alert(name, self.flow, excerpt) else None
        self._tail = seen[-TAIL_BYTES:]
        self._searched += len(data)
        if self._searched >= self.depth_bytes:
            self.release()
        return None

    def on_restart(self) -> None:
        self._tail, self._searched = b"", 0

    def on_alert(self, rule: str, excerpt: str) -> None:
        """A rule has matched; for subclasses that want to tell somebody."""

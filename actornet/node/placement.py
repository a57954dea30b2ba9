"""Which core serves a flow, and what the cores are told of flows that the log speaks of."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.rss import RssKeys
from actornet.engine.wire import rss_core, rss_entry_core
from actornet.flow import FlowActor
from actornet.log.record import FlowBody
from actornet.node.core_line import CoreLine
from actornet.node.exchange import Forget, Redirect, Restore

FlowKey = tuple[FiveTuple, int]


class Placement:
    """The flows of a node on its cores: each lives where its packets come to, unless it has moved.

    Where a key's packets come to another core than their flow's, that core is told where to pass them on to.
    """

    def __init__(
        self, lines: Sequence[CoreLine], ports: Sequence[str], rss_keys: tuple[RssKeys, RssKeys] | None = None
    ) -> None:
        self._lines = lines
        self._ports = list(ports)
        self._rss_keys = rss_keys
        self._redirects: dict[FlowKey, list[tuple[FiveTuple, int, int]]] = {}
        self._moved: dict[FlowKey, int] = {}
        self._arriving: deque[tuple[int, FlowBody]] = deque()

    def home(self, flow: FiveTuple, port: int) -> int:
        """The core that the five-tuple's packets come to, which arrive at the port with this index."""
        if len(self._lines) == 1:
            return 0
        keys = self._rss_keys
        return rss_core(flow, len(self._lines), None if keys is None else keys[":" in flow.source].key(port))

    def home_of(self, entry: int) -> int:
        """The core that an entry of the RSS table names."""
        return rss_entry_core(entry, len(self._lines))

    def core_of(self, flow: FiveTuple, port: int) -> int:
        """The core that the flow lives on which was opened with this key."""
        moved = self._moved.get((flow, port)) if self._moved else None
        return self.home(flow, port) if moved is None else moved

    def restore(self, body: FlowBody) -> None:
        """Put a flow, as the log has it, onto its core."""
        self._lines[self.core_of(body.flow, body.port)].send(Restore(body))
        self.redirect(body)

    def move(self, body: FlowBody, to: int) -> None:
        """Put a flow, as the log has it, onto core `to`; its home, where it waits, hears of it once it is there."""
        self._moved[body.flow, body.port] = to
        self._lines[to].send(Restore(body))
        self._arriving.append((to, body))

    def settle(self) -> None:
        """Pass on the packets of flows that have arrived: in a core's ring, not behind it, are the messages before."""
        while self._arriving and not self._lines[self._arriving[0][0]].waiting:
            to, body = self._arriving.popleft()
            if self._moved.get((body.flow, body.port)) == to:
                self.redirect(body)

    def forget(self, flow: FiveTuple, port: int) -> None:
        """The log says that the flow has closed."""
        core = self.core_of(flow, port)
        self.redirect_end(flow, port)
        self._lines[core].send(Forget(flow, port))

    def redirect(self, body: FlowBody) -> None:
        """Tell the cores that the flow's bound keys come to, before their packets can come."""
        if len(self._lines) == 1:
            return
        flow_core = self.core_of(body.flow, body.port)
        bound = [(body.flow, body.port)]
        bound += [(key, self._ports.index(port)) for key, port in FlowActor.bound_keys(body.state)]
        keys = [(key, port, self.home(key, port)) for key, port in bound]
        keys = [entry for entry in keys if entry[2] != flow_core]
        known = self._redirects.pop((body.flow, body.port), [])
        for key, port, home in known:
            if (key, port, home) not in keys:
                self._lines[home].send(Redirect(key, port, -1))
        for key, port, home in keys:
            if (key, port, home) not in known:
                self._lines[home].send(Redirect(key, port, flow_core))
        if keys:
            self._redirects[body.flow, body.port] = keys

    def redirect_end(self, flow: FiveTuple, port: int) -> None:
        """The flow has closed."""
        if self._moved:
            self._moved.pop((flow, port), None)
        for key, port_index, home in self._redirects.pop((flow, port), ()):
            self._lines[home].send(Redirect(key, port_index, -1))

    def begin_attach(self) -> None:
        """A core begins anew: it may be where moving flows wait, and has not kept their packets."""
        while self._arriving:
            self.redirect(self._arriving.popleft()[1])

    def attach(self, core: int, body: FlowBody) -> bool:
        """Send a core that begins anew what of this flow is its own; returns whether the flow is."""
        line, flow_core = self._lines[core], self.core_of(body.flow, body.port)
        if flow_core == core:
            line.send(Restore(body))
        for key, port, home in self._redirects.get((body.flow, body.port), ()):
            if home == core:
                line.send(Redirect(key, port, flow_core))
        return flow_core == core

"""Hold the first packet of a connection until a service outside has said whether its destination is allowed.

    actornet run examples/ask_first.py:AskFirst --read examples/captures/skype.pcap

Any asyncio library can be awaited in a handler. Here the service is a coroutine that takes its time; a real one would be
an HTTP request or a DNS query. Only the flow waits, its later packets in order behind the first; other flows go on.
"""

from __future__ import annotations

import asyncio
import ipaddress

from actornet import DROP, FORWARD, FlowActor, Packet, Verdict, setting


async def is_allowed(address: str) -> bool:
    """Stands for a service outside: slow, and sometimes too slow."""
    await asyncio.sleep(0.001)
    return not ipaddress.ip_address(address).is_multicast


class AskFirst(FlowActor):
    patience_s = setting(0.5, "how long to wait for the service before the connection is refused", least=0)

    allowed: bool = False

    async def on_open(self, packet: Packet) -> Verdict | None:
        answers = packet.flow.reversed()
        self.bind(answers)  # before waiting: answers belong here, not to a flow of their own
        try:
            async with asyncio.timeout(self.patience_s):
                self.allowed = await is_allowed(packet.destination)
        except TimeoutError:
            pass
        verdict = FORWARD if self.allowed else DROP
        self.offload(verdict)
        self.offload(verdict, answers)
        return None

    def on_packet(self, packet: Packet) -> Verdict:
        return FORWARD if self.allowed else DROP

"""Counts what each connection carries, and tells it when the connection ends.

    actornet run examples/counter.py:Counter --read examples/captures/skype.pcap --quiet

A network function is a class. Each connection gets an object of it, whose handlers are called with its packets, one at a
time and in order. There is nothing to lock, and nothing to look up: `self` is the connection.
"""

from actornet import FORWARD, FlowActor, Packet, Verdict


class Counter(FlowActor):
    """One connection, both ways."""

    idle_s = 60.0  # without a packet for so long it has ended

    sent: int = 0  # an annotated field is the connection's own; a backup would have it, too
    received: int = 0

    def on_open(self, packet: Packet) -> None:
        """The first packet: let those of the other direction come to this object, too."""
        self.bind(packet.flow.reversed())

    def on_packet(self, packet: Packet) -> Verdict:
        """Every packet, the first included. What is returned becomes of it."""
        if packet.flow == self.flow:
            self.sent += len(packet.payload)
        else:
            self.received += len(packet.payload)
        return FORWARD

    def on_close(self) -> None:
        print(f"{self.flow}  {self.packets} packets, {self.sent} bytes there, {self.received} back")

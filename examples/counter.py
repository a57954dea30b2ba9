"""Count what each flow sends, and say so when it ends.

    actornet run examples/counter.py:Counter --read examples/captures/skype.pcap
"""

from actornet import FORWARD, FlowActor, Packet, Verdict, setting


class Counter(FlowActor):
    idle_s = 30.0
    least = setting(100, "report flows of at least so many packets")

    payload_bytes: int = 0  # annotated: with a backup, it would go on counting from here

    def on_packet(self, packet: Packet) -> Verdict:
        self.payload_bytes += len(packet.payload)
        return FORWARD

    def on_close(self) -> None:
        if self.packets >= self.least:
            print(f"{self.flow}: {self.packets} packets, {self.payload_bytes} bytes of payload")

"""actornet: asynchronous network functions in Python, as actor classes.

What a network function needs is here, and nothing else: `FlowActor` and its verdicts, `Owner` for shared data, `setting`
for what the operator may choose.
"""

from actornet.chain import Chain
from actornet.engine.direction import Direction
from actornet.engine.five_tuple import FiveTuple
from actornet.engine.packet import Packet
from actornet.engine.terms import Meter, Mirror
from actornet.engine.verdict import DROP, FORWARD, OFFLOADED, REJECT, Forward, Rewrite, Verdict
from actornet.flow import FlowActor
from actornet.owner import Owner, Struct
from actornet.setting import setting
from actornet.stream import StreamActor

__version__ = "0.1.0"

__all__ = [
    "DROP",
    "FORWARD",
    "OFFLOADED",
    "REJECT",
    "Chain",
    "Direction",
    "FiveTuple",
    "FlowActor",
    "Forward",
    "Meter",
    "Mirror",
    "Owner",
    "Packet",
    "Rewrite",
    "StreamActor",
    "Struct",
    "Verdict",
    "setting",
]

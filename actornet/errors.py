"""Operating errors: each says what was wrong, where, and what to do. Programmer errors are assertions instead."""


class ActornetError(Exception):
    """Base of every operating error; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 1


class UsageError(ActornetError):
    """The user named something that does not exist or set something to a value that it cannot have."""

    exit_code = 2


class NoRouteError(UsageError):
    """What a handler wants to send has no next hop at the port that it is to leave by; its packet is dropped as `no_route`."""


class CaptureError(ActornetError):
    """A capture file is missing, unreadable, of an unknown format, or damaged."""


class PortError(ActornetError):
    """A network interface is absent, down, or may not be opened."""


class HandlerStalled(BaseException):
    """Raised in a flow's handler that does not return, as all flows of its core wait for it. Not an Exception, so that a
    handler's `except Exception` in a loop does not keep it."""

    def __str__(self) -> str:
        return "the handler did not return, and every other flow of its core had to wait"


class FlowTooLargeError(ActornetError):
    """A flow's actor keeps more memory than it may; names class, field and bytes."""


class StateError(ActornetError):
    """A value in an owner's state, or a flow's field, would not come back from the log by its type, or is too large for it;
    names owner or class, field, expected and actual."""


class LogError(ActornetError):
    """The log cannot be opened, written or read."""


class LogLockedError(LogError):
    """Another process has the log open for writing."""


class LogFullError(LogError):
    """The disk or the log's map is full; what was committed before stays whole."""


class LogDamagedError(LogError):
    """A record is missing, torn, flipped, or breaks the hash chain; the message names its LSN."""


class DivergenceError(LogError):
    """Replay decided otherwise than the log recorded (G4); names LSN, owner, message, expected and actual."""


class OtherCodeError(LogError):
    """Other code of the network function wrote the log, and this code decides otherwise; names both, and the LSN."""


class LinkError(ActornetError):
    """The peer cannot be reached, has another key or version, or broke the protocol."""


class WitnessError(ActornetError):
    """The witness cannot be asked, or it is unknown whether it did what it was asked for."""


class FencedError(ActornetError):
    """A higher epoch exists: this node is no longer the primary (G7)."""


class RingError(ActornetError):
    """Memory shared between a node's processes is damaged, of another layout, or cannot hold what was given to it."""


class OwnerError(ActornetError):
    """An owner's handler raised; the text is the same on primary, backup and replay."""


class NodeError(ActornetError):
    """A node cannot be started, reached or controlled, or one of its workers failed for good."""

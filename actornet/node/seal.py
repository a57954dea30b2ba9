"""The seal on every message of the control plane (G10).

Theory of operation. Thespian pickles its messages, so whoever may speak to an actor may run code in it. Each connection
therefore proves, before anything is unpickled, that both ends hold the deployment's key:

    acceptor  -> connector   greeting: magic, 16 random bytes A        (as soon as it has accepted)
    connector -> acceptor    greeting: magic, 16 random bytes C        (before its first frame)
    either way               frame: length (4 bytes), MAC (32 bytes), payload

The connection's key is HMAC-SHA256(deployment key; both greetings, address and port that the acceptor listens on). A
frame's MAC is HMAC-SHA256(connection's key; direction, number of the frame in that direction, payload). So a frame is
good once, at its place in one connection, at the process that it was meant for: it can be neither altered, replayed,
reordered, dropped from the middle, reflected, nor passed on to another process, and no clock is involved.

What is left: frames are not encrypted, so who can read the interface's traffic (root, on loopback) reads them; who sits
on the path can cut or delay a connection. Everyone with the key is trusted with everything.
"""

from __future__ import annotations

import hmac
import os
import pickle
from typing import Any

from actornet.limits import MESSAGE_BYTES_MAX

MAGIC = b"actornet control 1\n"
NONCE_BYTES = 16
GREETING_BYTES = len(MAGIC) + NONCE_BYTES
LENGTH_BYTES = 4
MAC_BYTES = 32


class UnauthenticatedError(Exception):
    """What arrived was not sealed with the deployment's key for this connection; nothing of it was unpickled."""


class Session:
    """Seals what one end of a connection sends and opens what it receives.

    `address` is where the acceptor listens, as (host, port): `getsockname()` of its end, `getpeername()` of the other.
    """

    def __init__(self, key: bytes, address: tuple[str, int], *, accepted: bool) -> None:
        self.greeting = MAGIC + os.urandom(NONCE_BYTES)
        self.met = False
        self.authenticated = False
        self._key = key
        self._address = b"%s:%d" % (address[0].encode(), address[1])
        self._accepted = accepted
        self._unsent = b"" if accepted else self.greeting
        self._sent = self._received = 0

    def meet(self, greeting: bytes) -> None:
        """Take the other end's greeting, after which frames can be sealed and opened."""
        assert not self.met and len(greeting) == GREETING_BYTES
        if not greeting.startswith(MAGIC):
            raise UnauthenticatedError("not the greeting of this version of actornet's control plane")
        ours, theirs = self.greeting, greeting
        both = ours + theirs if self._accepted else theirs + ours
        self._key = hmac.digest(self._key, both + self._address, "sha256")
        self.met = True

    def seal(self, payload: bytes) -> bytes:
        """The frame to send; a connector's first one carries its greeting along."""
        mac = self._mac(self._accepted, self._sent, payload)
        self._sent += 1
        frame = self._unsent + (MAC_BYTES + len(payload)).to_bytes(LENGTH_BYTES, "big") + mac + payload
        self._unsent = b""
        return frame

    def open(self, body: bytes) -> bytes:
        """The payload of a frame, given without its length; UnauthenticatedError unless it is the one due next."""
        payload = body[MAC_BYTES:]
        if not hmac.compare_digest(self._mac(not self._accepted, self._received, payload), body[:MAC_BYTES]):
            raise UnauthenticatedError("the message is not sealed with this deployment's key for this connection")
        self._received += 1
        self.authenticated = True
        return payload

    def _mac(self, by_acceptor: bool, number: int, payload: bytes) -> bytes:
        assert self.met
        return hmac.digest(self._key, b"%d %d " % (by_acceptor, number) + payload, "sha256")


class Intake:
    """Gathers the other end's greeting, if still due, and its next frame; stands in for Thespian's ReceiveBuffer.

    It never asks for a byte beyond the frame, and unpickles a frame only after its seal was found good.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._data = b""
        self._refusal: UnauthenticatedError | None = None
        self._opened: tuple[Any] | None = None

    def addMore(self, data: bytes) -> None:
        assert len(data) <= self.remainingAmount()
        self._data += data
        try:
            if not self.session.met:
                if len(self._data) == GREETING_BYTES:
                    self.session.meet(self._data)
                    self._data = b""
            elif len(self._data) == LENGTH_BYTES:
                length = int.from_bytes(self._data, "big")
                if not MAC_BYTES <= length <= MAC_BYTES + MESSAGE_BYTES_MAX:
                    raise UnauthenticatedError(f"a frame of {length} bytes, at most {MESSAGE_BYTES_MAX} are allowed")
        except UnauthenticatedError as refusal:
            self._refusal = refusal

    def remainingAmount(self) -> int:
        gathered = len(self._data)
        if not self.session.met:
            return GREETING_BYTES - gathered
        if gathered < LENGTH_BYTES:
            return LENGTH_BYTES - gathered
        return LENGTH_BYTES + int.from_bytes(self._data[:LENGTH_BYTES], "big") - gathered

    def isDone(self) -> bool:
        if self._refusal:
            return True
        return self.session.met and len(self._data) >= LENGTH_BYTES and self.remainingAmount() == 0

    def completed(self) -> tuple[Any, bytes]:
        """The unpickled frame and, for Thespian, the bytes after it (never any)."""
        assert self.isDone()
        if self._refusal:
            raise self._refusal
        if self._opened is None:
            self._opened = (pickle.loads(self.session.open(self._data[LENGTH_BYTES:])),)
        return self._opened[0], b""

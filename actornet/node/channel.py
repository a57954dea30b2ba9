"""A channel: one connection's bytes between two ends that prove to each other that they hold the deployment's key.

Theory of operation. K is that key, N each side's random nonce:

    client -> server   greeting:  magic, version, Nc
    server -> client   challenge: magic, version, Ns, HMAC-SHA256(K; "server proof", transcript)
    client -> server   proof:     HMAC-SHA256(K; "client proof", transcript)
    server -> client   a first frame: empty when the client is admitted, otherwise the reason why not
    either way         frames: length (4 bytes), MAC (16 bytes), payload

The transcript is version, Nc, Ns. A frame's MAC is keyed BLAKE2b over its number in its direction, its length and its
payload; the key is HMAC-SHA256(HMAC-SHA256(K; "session", transcript); direction): extract and expand, as in RFC 5869.
So a frame is good once, at its place in one direction of one connection: it can be neither altered, replayed,
reordered, cut nor reflected. Frames are not encrypted: whoever can read the wire can read the records.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Iterator
from hashlib import blake2b

from actornet.errors import LinkError
from actornet.limits import LINK_FRAME_BYTES_MAX
from actornet.replication.messages import VERSION

_MAGIC = b"actornet"
_PREFIX = _MAGIC + struct.pack(">H", VERSION)
_NONCE_BYTES = _PROOF_BYTES = 32
_GREETING_BYTES = len(_PREFIX) + _NONCE_BYTES
_CHALLENGE_BYTES = _GREETING_BYTES + _PROOF_BYTES
_HEADER = struct.Struct(">I16s")
_COVERED = struct.Struct(">QI")
_CLOSED = ("closed", "closed by the peer")
_WRONG_KEY = ("key", "the other end has another key: both nodes need the deployment's key file")

STRANGER_BYTES = _CHALLENGE_BYTES
"""Enough to read at once from an end that has not shown the key."""


class ChannelError(LinkError):
    """The connection cannot go on; `counter` names the count that it adds to."""

    def __init__(self, counter: str, reason: str) -> None:
        super().__init__(reason)
        self.counter = counter


class Channel:
    """One connection's bytes, without the socket: what arrived goes into `feed`, what is to be sent is in `output`."""

    def __init__(self, key: bytes, *, server: bool) -> None:
        self.output = bytearray()
        self.proven = False
        """The peer has shown the key; a server has yet to `admit` it."""
        self.open = False
        """Frames may be sent and received."""
        self._key = key
        self._server = server
        self._nonce = os.urandom(_NONCE_BYTES)
        self._expected_proof = b""
        self._input = bytearray()
        self._sent = self._received = 0
        if not server:
            self.output += _PREFIX + self._nonce

    def feed(self, data: bytes | memoryview) -> None:
        """Take what arrived; then ask for `payloads`."""
        self._input += data

    def payloads(self) -> Iterator[bytes]:
        """The payloads of the frames that are complete. LinkError where the bytes go wrong: no more can be had then."""
        while not self.open:
            if not self._shake_hands():
                return
        while (payload := self._next_frame()) is not None:
            yield payload

    def ended(self) -> ChannelError:
        """What it means that the peer sends no more bytes."""
        if not self.open:
            return ChannelError("torn", "closed by the peer during the handshake: do both ends have the same key?")
        return ChannelError("torn", "closed by the peer in mid-frame") if self._input else ChannelError(*_CLOSED)

    def seal(self, payload: bytes) -> None:
        """Frame a payload into `output`."""
        assert len(payload) <= LINK_FRAME_BYTES_MAX
        self.output += _HEADER.pack(len(payload), _mac(self._send_mac, self._sent, payload))
        self.output += payload
        self._sent += 1

    def admit(self, refusal: str = "") -> None:
        """The server's last word in the handshake."""
        assert self._server and self.proven
        self.seal(refusal.encode())
        self.open = not refusal

    def _next_frame(self) -> bytes | None:
        if len(self._input) < _HEADER.size:
            return None
        length, mac = _HEADER.unpack_from(self._input)
        if length > LINK_FRAME_BYTES_MAX:
            raise ChannelError("oversize", f"a frame claims {length} bytes; {LINK_FRAME_BYTES_MAX} is the most")
        frame = self._take(_HEADER.size + length)
        if not frame:
            return None
        payload = frame[_HEADER.size :]
        if not hmac.compare_digest(mac, _mac(self._receive_mac, self._received, payload)):
            raise ChannelError("mac", f"frame {self._received} was altered, replayed or reordered: its MAC is wrong")
        self._received += 1
        return payload

    def _shake_hands(self) -> bool:
        """One step of the handshake; whether another may follow."""
        if self._server:
            return False if self.proven else self._check_proof() if self._expected_proof else self._challenge()
        return self._read_admission() if self.proven else self._prove()

    def _challenge(self) -> bool:
        greeting = self._take_greeting(_GREETING_BYTES)
        if not greeting:
            return False
        proof = self._derive(greeting, self._nonce)
        self.output += _PREFIX + self._nonce + proof
        return True

    def _prove(self) -> bool:
        challenge = self._take_greeting(_CHALLENGE_BYTES)
        if not challenge:
            return False
        proof, theirs = self._derive(self._nonce, challenge[:_NONCE_BYTES]), challenge[_NONCE_BYTES:]
        if not hmac.compare_digest(self._expected_proof, theirs):
            raise ChannelError(*_WRONG_KEY)
        self.output += proof
        self.proven = True
        return True

    def _check_proof(self) -> bool:
        proof = self._take(_PROOF_BYTES)
        if not proof:
            return False
        if not hmac.compare_digest(self._expected_proof, proof):
            raise ChannelError(*_WRONG_KEY)
        self.proven = True
        return False

    def _read_admission(self) -> bool:
        refusal = self._next_frame()
        if refusal:
            raise ChannelError("refused", f"the other end refuses: {refusal.decode(errors='replace')[:200]}")
        self.open = refusal is not None
        return self.open

    def _derive(self, client_nonce: bytes, server_nonce: bytes) -> bytes:
        """Set the session's keys and the proof that the peer owes; returns the own proof."""
        transcript = struct.pack(">H", VERSION) + client_nonce + server_nonce
        session = _hmac(self._key, b"session" + transcript)
        to_server, to_client = _hmac(session, b"client to server"), _hmac(session, b"server to client")
        self._send_mac = blake2b(key=to_client if self._server else to_server, digest_size=16)
        self._receive_mac = blake2b(key=to_server if self._server else to_client, digest_size=16)
        server, client = _hmac(self._key, b"server proof" + transcript), _hmac(self._key, b"client proof" + transcript)
        self._expected_proof = client if self._server else server
        return server if self._server else client

    def _take_greeting(self, size: int) -> bytes:
        """What follows magic and version, which are checked as soon as they are there; nothing while incomplete."""
        start = bytes(self._input[: len(_PREFIX)])
        if start[: len(_MAGIC)] != _MAGIC[: len(start)]:
            raise ChannelError("garbage", "the other end is no actornet link")
        if len(start) == len(_PREFIX) and start != _PREFIX:
            version = int.from_bytes(start[len(_MAGIC) :], "big")
            if self._server:
                self.output += _PREFIX  # so that the client, too, can name both versions
            raise ChannelError("version", f"the other end speaks version {version} of the link, this one {VERSION}")
        return self._take(size)[len(_PREFIX) :]

    def _take(self, size: int) -> bytes:
        """Exactly the next `size` bytes, or none."""
        if len(self._input) < size:
            return b""
        data = bytes(self._input[:size])
        del self._input[:size]
        return data


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _mac(keyed: blake2b, number: int, payload: bytes) -> bytes:
    mac = keyed.copy()
    mac.update(_COVERED.pack(number, len(payload)))
    mac.update(payload)
    return mac.digest()

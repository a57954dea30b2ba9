from typing import Any

class Verdict:
    @property
    def name(self) -> str: ...

class Forward(Verdict):
    @property
    def to(self) -> str | None: ...
    def __init__(self, to: str | None = None) -> None: ...

class Rewrite(Forward):
    @property
    def source(self) -> str | None: ...
    @property
    def source_port(self) -> int | None: ...
    @property
    def destination(self) -> str | None: ...
    @property
    def destination_port(self) -> int | None: ...
    @property
    def dscp(self) -> int | None: ...
    @property
    def source_mac(self) -> str | None: ...
    @property
    def destination_mac(self) -> str | None: ...
    @property
    def vlan(self) -> int | None: ...
    @property
    def decrement_ttl(self) -> bool: ...
    @property
    def payload(self) -> bytes | None: ...
    def __init__(
        self,
        to: str | None = None,
        *,
        source: str | None = None,
        source_port: int | None = None,
        destination: str | None = None,
        destination_port: int | None = None,
        dscp: int | None = None,
        decrement_ttl: bool = True,
        source_mac: str | None = None,
        destination_mac: str | None = None,
        vlan: int | None = None,
        payload: bytes | bytearray | memoryview | None = None,
    ) -> None: ...

class Answer(Verdict):
    @property
    def payload(self) -> bytes: ...
    def __init__(self, payload: bytes | bytearray | memoryview) -> None: ...

class Made:
    @property
    def port(self) -> int: ...

class Emit(Verdict):
    @property
    def frames(self) -> list[Made]: ...
    @property
    def counter(self) -> int: ...

DROP: Verdict
REJECT: Verdict
OFFLOADED: Verdict
FORWARD: Forward

def decode_verdict(form: list[Any] | None) -> Verdict: ...
def encode_verdict(verdict: Verdict) -> list[Any] | None: ...

"""The NAT against an independent model, requirement by requirement."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, ClassVar

import pytest

from actornet import FiveTuple
from actornet.embedded import Embedded
from actornet.engine.wire import parse
from actornet.errors import UsageError
from actornet.log.record import AskBody, FlowBody
from actornet.ports.host import Host
from actornet.ports.memory import MemoryPort
from actornet.replay.history import History
from actors.nat import Endpoint, SourceNAT
from tests import frames
from tests.nat_bench import (
    ACK,
    EXTERNAL,
    FIN,
    ICMP,
    ROUTER,
    RST,
    SECOND,
    SYN,
    TCP,
    UDP,
    A,
    B,
    C,
    Nat,
    P,
    Q,
    WithoutFragments,
    answer,
    assert_nothing_left,
    assert_sound,
    first_of,
    outside_of,
    seen,
    tcp,
    udp,
)
from tests.nat_model import Packet, dissect

# ------------------------------------------------------------------------------- RFC 4787 (UDP) and RFC 5382 (TCP)


@pytest.mark.parametrize("protocol", [UDP, TCP, ICMP])
def test_udp_1_tcp_1_mapping_is_endpoint_independent(nat: Callable[..., Nat], protocol: int) -> None:
    one = nat()
    places = [(P, 80), (P, 81), (Q, 80), (Q, 443)]
    found = {outside_of(one.lan(first_of(protocol, A, 5000, *place))[0]) for place in places}
    assert len(found) == 1
    assert outside_of(one.lan(first_of(protocol, A, 5001))[0]) not in found


def test_udp_2_pooling_is_paired(nat: Callable[..., Nat]) -> None:
    addresses = ["203.0.113.1", "203.0.113.2", "203.0.113.3"]
    one = nat(address=", ".join(addresses))
    used: dict[str, set[str]] = {}
    for host in range(2, 42):
        packets = [
            first_of(protocol, f"10.0.0.{host}", port) for protocol in (UDP, TCP, ICMP) for port in (5000, 5001, 7)
        ]
        used[f"10.0.0.{host}"] = {outside_of(left)[0] for left in one.lan(*packets)}
    assert all(len(found) == 1 for found in used.values())
    assert {address for found in used.values() for address in found} == set(addresses), "all are used"


@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_udp_3_tcp_7_ports_are_kept_and_never_shared(nat: Callable[..., Nat], protocol: int) -> None:
    one = nat()
    hosts = [f"10.0.1.{number}" for number in range(50)]
    for port in (5000, 123):
        found = [outside_of(one.lan(first_of(protocol, host, port))[0])[1] for host in hosts]
        assert found[0] == port, "the first has its own"
        assert len(set(found)) == 50
        assert all((other < 1024) == (port < 1024) for other in found), "UDP-3a: of the same range"


def test_udp_3a_without_ports_of_a_range_the_other_serves(nat: Callable[..., Nat]) -> None:
    high, low = nat(first_port=2000, last_port=2009), nat(first_port=100, last_port=109)
    assert 2000 <= outside_of(high.lan(udp(A, 500))[0])[1] <= 2009
    assert 100 <= outside_of(low.lan(udp(A, 5000))[0])[1] <= 109


def test_udp_4_parity_is_kept(nat: Callable[..., Nat]) -> None:
    one = nat()
    for port in (5000, 5001, 44, 45):
        found = [outside_of(one.lan(udp(f"10.0.1.{host}", port))[0])[1] for host in range(20)]
        assert {other % 2 for other in found} == {port % 2}


def opened(one: Nat, protocol: int, how: str) -> list[bytes]:
    """What left last for a flow of host A, port 5000, that has been opened this way."""
    first = first_of(protocol, A, 5000)
    if how == "middle":
        return one.lan(tcp(A, 5000, ACK))
    left = one.lan(first)
    if how != "opening":
        one.wan(answer(left[0]))
    if how in ("closed", "half-closed", "reset"):
        one.wan(answer(left[0], RST if how == "reset" else FIN | ACK))
    if how == "closed":
        one.lan(tcp(A, 5000, FIN | ACK))
    return left


@pytest.mark.parametrize(
    ("protocol", "how", "idle_s"),
    [
        (UDP, "answered", 300),
        (ICMP, "answered", 60),
        (TCP, "opening", 240),
        (TCP, "answered", 7440),
        (TCP, "half-closed", 7440),
        (TCP, "closed", 240),
        (TCP, "reset", 240),
        (TCP, "middle", 7440),
    ],
)
def test_udp_5_tcp_5_icmp_2_time_outs(nat: Callable[..., Nat], protocol: int, how: str, idle_s: int) -> None:
    """Not a second earlier; and then the port is another host's to have."""
    one = nat()
    (left,) = opened(one, protocol, how)
    one.wait(idle_s - 1)
    assert one.count("live_flows") == 1
    assert seen(one.lan(first_of(protocol, B, 5000))[0]).source.port != 5000, "the mapping still holds the port"
    one.wait(idle_s * 2 + 7440)
    assert one.count("live_flows") == 0 and one.state.by_inside == {}
    assert one.wan(answer(left)) == []
    assert seen(one.lan(first_of(protocol, C, 5000))[0]).source.port == 5000


def test_udp_5_a_mapping_lives_as_long_as_its_last_flow(nat: Callable[..., Nat]) -> None:
    one = nat()
    one.lan(udp(B, 5000), udp(A, 5000, P))
    (left,) = one.lan(udp(A, 5000, Q))
    for _ in range(3):
        one.wait(200)
        assert seen(one.lan(udp(A, 5000, Q))[0]).source == seen(left).source
    assert len(one.state.by_inside) == 1 and next(iter(one.state.by_inside.values())).flows == 1


@pytest.mark.parametrize("direction", ["out", "in"])
def test_udp_6_packets_of_either_direction_refresh(nat: Callable[..., Nat], direction: str) -> None:
    one = nat()
    (left,) = one.lan(udp(A, 5000))
    for _ in range(5):
        one.wait(290)
        assert one.lan(udp(A, 5000)) if direction == "out" else one.wan(answer(left))
    assert one.count("flows_opened") == 1


@pytest.mark.parametrize(
    ("filtering", "let_in"),
    [
        ("endpoint-independent", {(P, 53), (P, 54), (Q, 53)}),
        ("address-dependent", {(P, 53), (P, 54)}),
        ("address-and-port-dependent", {(P, 53)}),
    ],
)
@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_udp_8_tcp_3_filtering(
    nat: Callable[..., Nat], protocol: int, filtering: str, let_in: set[tuple[str, int]]
) -> None:
    one = nat(filtering=filtering)
    (left,) = one.lan(first_of(protocol, A, 5000, P, 53))
    outside = seen(left).source
    for remote in [(P, 53), (P, 54), (Q, 53)]:
        came = one.wan(first_of(protocol, *remote, *outside))
        assert [seen(frame).destination for frame in came] == [(A, 5000)] * (remote in let_in)
    assert one.wan(first_of(protocol, P, 53, EXTERNAL, 5999)) == [], "nothing is mapped there"
    assert one.wan(first_of(protocol, P, 53, A, 5000)) == [], "nor is anybody inside reached by the own address"


def test_udp_8_permission_ends_with_the_last_flow_to_the_address(nat: Callable[..., Nat]) -> None:
    one = nat(filtering="address-dependent")
    one.lan(udp(A, 5000, P, 53), udp(A, 5000, P, 54))
    (left,) = one.lan(udp(A, 5000, Q, 53))
    for _ in range(2):
        one.wait(200)
        one.lan(udp(A, 5000, Q, 53))
    assert one.state.remotes == {Endpoint(UDP, A, 5000): {Q: 1}}
    assert one.wan(frames.udp(P, 53, *seen(left).source)) == []
    assert one.wan(frames.udp(Q, 99, *seen(left).source))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("udp_idle_s", 0),
        ("tcp_idle_s", -1.0),
        ("icmp_idle_s", 1e10),
        ("first_port", 0),
        ("last_port", 65536),
        ("cores", 0),
    ],
)
def test_settings_out_of_bounds_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"setting '{name}' must be "):
        Nat(**{name: value})


def test_filtering_must_be_known() -> None:
    with pytest.raises(UsageError, match="filtering must be one of endpoint-independent, address-dependent, "):
        Nat(filtering="none")
    with pytest.raises(UsageError, match=r"setting 'address': '203\.0\.113\.1, 203\.0\.113\.256' is no IPv4 address"):
        Nat(address="203.0.113.1, 203.0.113.256")
    with pytest.raises(UsageError, match="first <= last"):
        Nat(first_port=2000, last_port=1999)


@pytest.mark.parametrize("filtering", ["endpoint-independent", "address-and-port-dependent"])
@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_udp_9_tcp_8_hairpinning(nat: Callable[..., Nat], protocol: int, filtering: str) -> None:
    """With the external address and port as the source; also back, and for a host that speaks to itself."""
    one = nat(filtering=filtering)
    server = seen(one.lan(first_of(protocol, A, 5000))[0]).source
    for client in (B, A):
        (left,) = one.lan(first_of(protocol, client, 6000, *server))
        assert seen(left) == (protocol, (EXTERNAL, seen(left).source.port), (A, 5000))
        (back,) = one.lan(answer(left))
        assert seen(back) == (protocol, server, (client, 6000))
    assert one.lan(first_of(protocol, B, 6000, EXTERNAL, 999)) == [], "nothing is mapped there"
    assert len(one.left["wan"]) == 1


@pytest.mark.parametrize("protocol", [UDP, TCP, ICMP])
def test_udp_12_tcp_10_icmp_6_errors_neither_end_nor_refresh(nat: Callable[..., Nat], protocol: int) -> None:
    one = nat()
    (left,) = opened(one, protocol, "opening")
    idle_s = {UDP: 300, TCP: 240, ICMP: 60}[protocol]
    one.wait(idle_s - 10)
    for kind, code in ((3, 3), (3, 1), (11, 0), (12, 0)):
        assert one.wan(frames.icmp_error(ROUTER, left, kind, code))
    assert one.count("live_flows") == 1 and one.lan(first_of(protocol, A, 5000)) != []
    one.wait(idle_s - 10)
    assert one.wan(frames.icmp_error(ROUTER, left))
    one.wait(30)
    assert one.count("live_flows") == 0
    assert one.wan(frames.icmp_error(ROUTER, left)) == [] and one.count("icmp_error_unmatched") == 1


def test_tcp_2_simultaneous_open(nat: Callable[..., Nat]) -> None:
    one = nat()
    (left,) = one.lan(tcp(A, 5000, SYN))
    assert [seen(frame).destination for frame in one.wan(answer(left, SYN))] == [(A, 5000)]
    assert one.lan(tcp(A, 5000, SYN | ACK)) and one.wan(answer(left, SYN | ACK))
    one.wait(7000)
    assert one.lan(tcp(A, 5000, ACK)), "established"
    assert one.count("flows_opened") == 1


def test_tcp_2_simultaneous_open_where_the_other_syn_comes_first(nat: Callable[..., Nat]) -> None:
    one = nat()
    one.lan(tcp(A, 5000, SYN, Q))
    assert one.wan(frames.tcp(P, 80, EXTERNAL, 5000, SYN)), "endpoint-independent filtering lets it in"
    (left,) = one.lan(tcp(A, 5000, SYN))
    assert seen(left).source == (EXTERNAL, 5000)
    one.wait(7000)
    assert one.wan(answer(left, ACK)) and one.count("flows_opened") == 2


def test_tcp_2_opened_from_outside(nat: Callable[..., Nat]) -> None:
    """By a SYN alone: what else comes from outside belongs to a connection, or to none."""
    one = nat()
    one.lan(tcp(A, 5000, SYN, Q))
    for flags in (ACK, SYN | ACK & 0, RST, FIN | ACK, 0):
        assert bool(one.wan(frames.tcp(P, 80, EXTERNAL, 5000, flags))) == (flags == SYN or one.count("live_flows") == 2)
    assert one.count("dropped_by_nf") == 1


def test_tcp_2_the_same_five_tuple_again(nat: Callable[..., Nat]) -> None:
    """After FINs or an RST the next SYN is a new connection, with the time-out of one."""
    one = nat()
    (left,) = opened(one, TCP, "closed")
    one.lan(tcp(A, 5000, SYN))
    one.wan(answer(left))
    one.wait(7000)
    assert one.wan(answer(left, ACK)), "established"
    one.wan(answer(left, RST))
    one.lan(tcp(A, 5000, SYN))
    one.wan(answer(left))
    one.wait(7000)
    assert one.lan(tcp(A, 5000, ACK)) and one.count("flows_opened") == 1


def test_tcp_2_retransmissions_save_nothing_anew(nat: Callable[..., Nat]) -> None:
    one = nat()
    opened(one, TCP, "closed")
    lsn = one.embedded.journal.lsn
    for flags in (SYN & 0 | FIN | ACK, RST, FIN | ACK):
        assert len(one.lan(*[tcp(A, 5000, flags)] * 3)) == 3
    assert one.embedded.journal.lsn == lsn


@pytest.mark.parametrize("filtering", ["endpoint-independent", "address-and-port-dependent"])
def test_tcp_4_an_unsolicited_syn_is_not_answered(nat: Callable[..., Nat], filtering: str) -> None:
    one = nat(filtering=filtering)
    one.lan(tcp(A, 5000, SYN, Q))
    port = 5001 if filtering == "endpoint-independent" else 5000
    for _ in range(3):
        assert one.wan(frames.tcp(P, 80, EXTERNAL, port, SYN)) == []
    assert one.count("dropped_by_nf") == 3 and one.count("live_flows") == 1


# ------------------------------------------------------------------------------------------------ RFC 5508 (ICMP)


def test_icmp_1_queries_and_their_responses(nat: Callable[..., Nat]) -> None:
    """The identifier is translated where two hosts use the same."""
    one = nat()
    left = [one.lan(frames.echo(host, P, 7))[0] for host in (A, B, C)]
    assert len({outside_of(frame) for frame in left}) == 3 and outside_of(left[0])[1] == 7
    for host, frame in zip((A, B, C), left, strict=True):
        assert seen(one.wan(answer(frame))[0]) == (ICMP, (P, 7), (host, 7))
    assert one.wan(frames.echo(Q, EXTERNAL, 7)) == [], "a query from outside names no host"
    assert one.lan(frames.echo(A, EXTERNAL, 7)) == [], "nor does one from inside"


@pytest.mark.parametrize("protocol", [UDP, TCP, ICMP])
def test_tcp_9_icmp_4_errors_from_outside(nat: Callable[..., Nat], protocol: int) -> None:
    """Who sent it stays who sent it, or traceroute would not work; the packet inside is the host's own again."""
    one = nat()
    one.lan(first_of(protocol, B, 5000))
    sent = first_of(protocol, A, 5000)
    (left,) = one.lan(sent)
    assert outside_of(left)[1] != 5000
    (came,) = one.wan(frames.icmp_error(ROUTER, left, 11, 0))
    packet = dissect(came)
    assert isinstance(packet, Packet) and (packet.source, packet.destination) == (ROUTER, A)
    assert packet.flow.reversed() == seen(sent)
    assert came[34:36] == bytes((11, 0)), "type and code stay"
    assert one.wan(frames.icmp_error(ROUTER, sent)) == [], "nothing is known of what never left"


@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_icmp_5_errors_from_inside(nat: Callable[..., Nat], protocol: int) -> None:
    """From the host, or from a router inside, whose address nobody outside could answer."""
    one = nat()
    outside = seen(one.lan(first_of(protocol, A, 5000, Q))[0]).source
    came = first_of(protocol, P, 99, *outside)
    (delivered,) = one.wan(came)
    for sender in (A, "10.0.0.254"):
        (left,) = one.lan(frames.icmp_error(sender, delivered))
        packet = dissect(left)
        assert isinstance(packet, Packet) and (packet.source, packet.destination) == (EXTERNAL, P)
        assert packet.flow.reversed() == seen(came)


@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_icmp_7_hairpinned_errors(nat: Callable[..., Nat], protocol: int) -> None:
    one = nat()
    server = seen(one.lan(first_of(protocol, A, 5000))[0]).source
    sent = first_of(protocol, B, 6000, *server)
    (delivered,) = one.lan(sent)
    (came,) = one.lan(frames.icmp_error(A, delivered))
    packet = dissect(came)
    assert isinstance(packet, Packet) and (packet.source, packet.destination) == (EXTERNAL, B)
    assert packet.flow.reversed() == seen(sent)


def test_icmp_8_exhaustion_is_counted_and_over_when_a_flow_ends(nat: Callable[..., Nat]) -> None:
    one = nat(first_port=2000, last_port=2007)
    hosts = [f"10.0.1.{number}" for number in range(10)]
    left = one.lan(*[udp(host, 5000) for host in hosts])
    assert sorted(outside_of(frame)[1] for frame in left) == list(range(2000, 2008)), "the very last port is used"
    assert one.count("rejected_by_nf") == 2 and one.state.exhausted == 2
    assert one.lan(udp(hosts[0], 5000, Q)), "a mapping serves any number of flows"
    assert one.lan(tcp(A, 5000, SYN)), "each protocol has ports of its own"
    one.wait(700)
    assert len(one.lan(udp(hosts[8], 5000), udp(hosts[9], 5000))) == 2


def test_icmp_8_an_exhausted_nat_holds_nothing_for_a_hairpinned_flow(nat: Callable[..., Nat]) -> None:
    one = nat(first_port=2000, last_port=2000)
    (left,) = one.lan(udp(A, 5000))
    assert one.lan(udp(B, 5000, *seen(left).source)) == [] and one.count("rejected_by_nf") == 1
    assert [mapping.flows for mapping in one.state.by_inside.values()] == [1]


def test_icmp_8_who_cannot_be_served_is_told_so() -> None:
    """On a routed port: destination unreachable, communication administratively prohibited."""
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    lan.interface, lan.mac = ip_interface("10.0.0.1/24"), frames.WAN_MAC
    one = Embedded(SourceNAT, [lan, wan], {"first_port": 2000, "last_port": 2000}, virtual_time=True)
    one.core.host = Host()
    lan.feed([(SECOND, udp(A, 5000)), (SECOND, udp(B, 5000))])
    one.run_burst()
    ((_, told),) = lan.take()
    packet = dissect(told)
    assert isinstance(packet, Packet) and told[34:36] == bytes((3, 13))
    assert (packet.source, packet.destination) == ("10.0.0.1", B) and packet.flow == seen(udp(B, 5000)).reversed()
    one.finish()


# ------------------------------------------------------------------------------------------- what holds for all


def test_ttl_is_taken_down_and_runs_out(nat: Callable[..., Nat]) -> None:
    one = nat()
    assert one.lan(udp(A, 5000, ttl=2))[0][22] == 1
    assert one.lan(udp(A, 5000, ttl=1)) == [] and one.lan(udp(B, 5000, ttl=0)) == []
    assert one.wan(udp(P, 53, EXTERNAL, 5000, ttl=1)) == []
    assert one.count("ttl_expired") == 3


def test_checksums_stay_as_they_are(nat: Callable[..., Nat]) -> None:
    """UDP without one stays without; a wrong one stays wrong by as much; none becomes 0 by accident."""
    one = nat()
    bare, wrong = bytearray(udp(A, 5000)), bytearray(udp(A, 5001))
    bare[40:42], wrong[40] = b"\0\0", wrong[40] ^ 0xFF
    left = one.lan(bytes(bare), bytes(wrong), udp(A, 5002, data=b"\0\0"))
    assert left[0][40:42] == b"\0\0"
    (zero,) = one.lan(udp(A, 5002, data=left[2][40:42]))  # what the checksum was is added to the data: 0 is due
    assert zero[40:42] == b"\xff\xff"


def test_what_is_not_translated_is_dropped_by_name(nat: Callable[..., Nat]) -> None:
    one = nat(nf=WithoutFragments)
    fragment = bytearray(udp(A, 5000))
    fragment[20] |= 0x20
    protocol_41 = frames.ethernet(frames.ipv4(A, P, 41, bytes(40)))
    ipv6 = frames.ethernet(
        b"\x60\0\0\0\0\x08\x11\x40" + bytes(15) + b"\1" + bytes(15) + b"\2" + b"\0\1\0\2\0\x08\0\0", kind=0x86DD
    )
    one.lan(bytes(fragment), protocol_41, ipv6, udp(A, 5000)[:30])
    one.wan(udp(P, 53, A, 5000))
    counted = {name: one.count(name) for name in ("fragment", "untracked", "dropped_by_nf", "truncated")}
    assert counted == {"fragment": 1, "untracked": 1, "dropped_by_nf": 2, "truncated": 1}


def test_state_does_not_grow_with_hosts_that_are_gone(nat: Callable[..., Nat]) -> None:
    one = nat(address="203.0.113.1, 203.0.113.2")
    empty = len(one.embedded.journal.replica.snapshot())
    for turn in range(3):
        one.lan(*[udp(f"10.1.{host >> 8}.{host & 255}", 5000 + turn) for host in range(500)])
        one.wait(700)
    assert one.count("flows_opened") == 1500
    assert len(one.embedded.journal.replica.snapshot()) <= empty + 40


@pytest.mark.parametrize("seed", range(12))
def test_random_traffic(nat: Callable[..., Nat], seed: int) -> None:
    """A small pool, few hosts, all protocols, any flags, any pause: the model knows what to expect of every packet."""
    choose = random.Random(seed)
    one = nat(first_port=1020, last_port=1027, filtering=choose.choice(["endpoint-independent", "address-dependent"]))
    for _ in range(1500):
        if choose.random() < 0.03:
            one.wait(choose.choice([7, 49, 70, 203, 252, 308, 8001]))  # no sum of halves of these is a time-out
        host, port = choose.choice([A, B, C]), choose.choice([1020, 1021, 80, 5000, 5001])
        remote, to = choose.choice([(P, 53), (P, 80), (Q, 53), (EXTERNAL, choose.randint(1020, 1027))])
        protocol = choose.choice([UDP, TCP, ICMP])
        flags = choose.choice([SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST])
        recent = [frame for frame in one.left["wan"][-20:] if frame[34] != 3]  # no error is about an error
        if recent and choose.random() < 0.2:
            one.wan(frames.icmp_error(ROUTER, choose.choice(recent)))
        elif choose.random() < 0.5:
            one.lan(
                tcp(host, port, flags, remote, to) if protocol == TCP else first_of(protocol, host, port, remote, to)
            )
        else:
            outside = (EXTERNAL, choose.randint(1019, 1028))
            one.wan(tcp(P, to, flags, *outside) if protocol == TCP else first_of(protocol, P, to, *outside))


# --------------------------------------------------------------------------------------- crashes and the log


class Dying(SourceNAT):
    """Dies when the owner's reply has come and is in the log, before the flow is saved."""

    link: ClassVar[Any] = None

    def _become(self, translated: FiveTuple, port: str) -> None:
        if Dying.link is not None:
            Dying.link.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        super()._become(translated, port)


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("hairpinned", [False, True])
def test_a_flow_that_runs_again_after_a_crash_gets_no_second_port(
    tmp_path: Path, hairpinned: bool, returns: bool
) -> None:
    """G5: the owner's messages of before the crash are answered from the log, not carried out again, nor leaked."""
    log, server = tmp_path / "log", udp(A, 2500)
    sent = udp(B, 5000, EXTERNAL, 2500) if hairpinned else udp(B, 5000)
    child = os.fork()
    if child == 0:
        _die_between_ask_and_save(log, server, sent)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL

    with History(log) as history:
        asked = [entry.record.body for entry in history.entries() if entry.record]
        before = [body for body in asked if isinstance(body, AskBody) and body.flow and body.flow.source == B]
        assert [body.message for body in before] == (["accept", "acquire"] if hairpinned else ["acquire"])
        assert not any(isinstance(body, FlowBody) and body.flow.source == B for body in asked), "it was not saved"
        promised = history.state().owners["wan-ports"].state.by_inside[Endpoint(UDP, B, 5000)].outside
    assert promised.port != 5000, "which port it is was up to chance"

    one = Nat(log, first_port=2000, last_port=2999)
    assert one.count("resumed") == 1, "the packet that came with the flow's first ask was treated again"
    (resumed,) = one.left_at_start()
    assert one.lan(server) and outside_of(one.left["wan"][-1]) == (EXTERNAL, 2500)
    assert outside_of(resumed) == (promised.address, promised.port)
    if returns:
        (left,) = one.lan(sent)
        assert left == resumed
    assert {inside.address: mapping.flows for inside, mapping in one.state.by_inside.items()} == (
        {A: 2, B: 1} if hairpinned else {A: 1, B: 1}
    )
    one.wait(700)  # whether or not the client comes again, its mapping ends with its flow
    assert one.count("live_flows") == 0
    assert_nothing_left(one.embedded)
    one.embedded.finish()
    assert_sound(log)


def _die_between_ask_and_save(log: Path, server: bytes, sent: bytes) -> None:
    """The ask reaches the log as it does where owners live in a process of their own: before the flow is saved."""
    one = Nat(log, Dying, first_port=2000, last_port=2999)
    one.lan(server)
    Dying.link = one.embedded.link
    one.lan(sent)


def test_flows_go_on_after_a_crash(nat: Callable[..., Nat]) -> None:
    """G6: with the same translation, the same phase of TCP and the same claims on the mappings."""
    one = nat(filtering="address-dependent")
    (left,) = opened(one, TCP, "half-closed")
    server = seen(one.lan(udp(A, 5000))[0]).source
    one.lan(udp(B, 6000, *server))
    state = one.state
    one.crash()
    assert one.state == state and one.embedded.core.entries == 6
    assert one.wan(answer(left, ACK)) and one.lan(tcp(A, 5000, ACK)) and one.lan(udp(B, 6000, *server))
    one.wait(2000)
    assert one.count("live_flows") == 1, "the UDP flows were idle, the connection is established"
    one.lan(tcp(A, 5000, FIN | ACK))
    one.wait(500)
    assert one.count("live_flows") == 0


@pytest.mark.parametrize("cores", [2, 3, 4, 8])
@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_answers_come_to_the_core_of_their_flow(protocol: int, cores: int) -> None:
    """Whichever the remote: nothing is handed from core to core, though mappings are endpoint-independent (UDP-1)."""
    one = Embedded(
        SourceNAT, [MemoryPort("lan"), MemoryPort("wan")], {"address": EXTERNAL, "cores": cores}, virtual_time=True
    )
    lan, wan = one.core.ports
    astray = 0
    for host in range(2, 42):
        for port in (5000, 5001, 40000 + host):
            ports = set()
            for remote in (P, Q, "192.0.2.77"):
                lan.feed([(SECOND, first_of(protocol, f"10.0.0.{host}", port, remote, 443))])
                one.run_burst()
                ((_, left),) = wan.take()
                sent = parse(bytes(left))["flow"]
                assert sent is not None
                ports.add(sent.source_port)
                inside = FiveTuple(protocol, f"10.0.0.{host}", port, remote, 443)
                astray += inside.core(cores) != sent.reversed().core(cores)
            assert len(ports) == 1 and ports.pop() % 2 == port % 2
    assert astray == 0
    one.finish()
    assert_nothing_left(one)


def test_ports_without_a_core_are_used_when_the_others_are_taken(nat: Callable[..., Nat]) -> None:
    one = nat(address=EXTERNAL, cores=8, first_port=5000, last_port=5007)
    for host in range(8):
        assert one.lan(udp(f"10.0.0.{host + 2}", 5000 + host))
    assert one.lan(udp("10.0.0.20", 5000)) == [] and one.count("rejected_by_nf") == 1

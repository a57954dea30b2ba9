"""RSS keys solved from what an NF declares: verified by hashing packets, and by trying all keys of a smaller problem."""

from __future__ import annotations

import json
import random
from itertools import combinations
from typing import Any

import pytest

from actornet import FORWARD, FiveTuple, FlowActor, Packet
from actornet.cli.main import main
from actornet.cli.rss import spread
from actornet.engine.core import Core
from actornet.engine.handoff import Handoff
from actornet.engine.ring import Ring
from actornet.engine.rss import FIELDS, RssConflict, solve
from actornet.engine.wire import RSS_KEY_SYMMETRIC, rss_core, toeplitz
from actornet.errors import UsageError
from actornet.node.placement import Placement
from actornet.ports.memory import MemoryPort
from tests import frames

SETS = [fields for count in (1, 2, 3, 4) for fields in combinations(FIELDS, count)]


def random_flow(rng: random.Random, version: int, **fixed: Any) -> FiveTuple:
    def address() -> str:
        if version == 4:
            return ".".join(str(rng.randrange(1, 255)) for _ in range(4))
        return "2001:db8:" + ":".join(f"{rng.randrange(1, 65536):x}" for _ in range(6))

    drawn = {"source": address(), "destination": address(), "source_port": rng.randrange(65536)}
    return FiveTuple(**{"protocol": 6, **drawn, "destination_port": rng.randrange(65536), **fixed})


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("fields", SETS, ids="-".join)
def test_packets_that_agree_in_the_fields_share_a_core_and_answers_theirs(
    fields: tuple[str, ...], version: int
) -> None:
    keys = solve(fields, (version,))
    assert keys.spread_bits == 7, "every entry of the table is used"
    rng = random.Random(1)
    for _ in range(50):
        flow = random_flow(rng, version)
        fixed = {name: getattr(flow, name) for name in fields}
        cores = {rss_core(flow, 128, keys.first)}
        for _ in range(10):
            other = random_flow(rng, version, **fixed)
            cores |= {rss_core(other, 128, keys.first), rss_core(other.reversed(), 128, keys.other)}
        assert len(cores) == 1
    seen = {rss_core(random_flow(rng, version), 128, keys.first) for _ in range(3000)}
    assert len(seen) == 128


def test_one_key_for_both_versions_where_there_is_one() -> None:
    for fields in SETS:
        try:
            keys = solve(fields)
        except RssConflict as conflict:
            assert "IPv4 and IPv6" in str(conflict)
            continue
        assert {"source", "destination"} <= set(fields)
        for version in (4, 6):
            rng = random.Random(2)
            for _ in range(100):
                flow = random_flow(rng, version)
                other = random_flow(rng, version, **{name: getattr(flow, name) for name in fields})
                core = rss_core(flow, 128, keys.first)
                assert core == rss_core(other, 128, keys.first) == rss_core(flow.reversed(), 128, keys.other)


LAYOUT = {4: (0, 32, 64, 80, 96), 6: (0, 128, 256, 272, 288)}


def equations(fields: tuple[str, ...], versions: tuple[int, ...]) -> list[int]:
    """The conditions on both keys' bits as rows of a matrix over GF(2): a sum of bits that is 0."""
    rows = []
    for version in versions:
        places = LAYOUT[version]
        for number, field in enumerate(FIELDS):
            answer = places[number ^ 1]
            for offset in range(places[number + 1] - places[number]):
                for low in range(7):
                    one, two = places[number] + offset + 31 - low, 320 + answer + offset + 31 - low
                    rows += [1 << one | 1 << two] if field in fields else [1 << one, 1 << two]
    return rows


def reduced(rows: list[int]) -> dict[int, int]:
    """Gaussian elimination: leading bit -> row."""
    found: dict[int, int] = {}
    for row in rows:
        while row and (lead := row.bit_length()) in found:
            row ^= found[lead]
        if row:
            found[row.bit_length()] = row
    return found


@pytest.mark.parametrize("versions", [(4,), (6,), (4, 6)], ids=["IPv4", "IPv6", "both"])
@pytest.mark.parametrize("fields", SETS, ids="-".join)
def test_elimination_finds_as_many_keys_and_no_other_conflicts(
    fields: tuple[str, ...], versions: tuple[int, ...]
) -> None:
    basis = reduced(equations(fields, versions))
    try:
        assert solve(fields, versions).free_bits == 640 - len(basis)
    except RssConflict:
        useless = []
        for version in versions:
            windows = [
                LAYOUT[version][FIELDS.index(field)] + offset + 31 - low
                for field in fields
                for offset in range(LAYOUT[version][FIELDS.index(field) + 1] - LAYOUT[version][FIELDS.index(field)])
                for low in range(7)
            ]
            useless.append(all(len(reduced([*basis.values(), 1 << bit])) == len(basis) for bit in windows))
        assert any(useless), "for one version at least, every bit that the hash could depend on must be 0"


def test_groups_that_share_no_field_are_named() -> None:
    groups = {"per host": ("source",), "per service": ("destination", "destination_port")}
    with pytest.raises(
        RssConflict, match="per host is divided by source, per service by destination and destination port"
    ):
        solve(groups)
    assert solve({"a": ("source", "destination"), "b": ("source", "source_port")}, (4,)).fields == ("source",)
    for wrong in (("host",), ("source", "source"), {"a": ()}, {"a": "source"}):
        with pytest.raises(UsageError, match="must be divided by one or more of source, destination"):
            solve(wrong)  # type: ignore[arg-type]


def test_without_a_declaration_a_key_is_symmetric() -> None:
    keys = solve(())
    assert keys.fields == FIELDS
    rng = random.Random(3)
    for version in (4, 6):
        for _ in range(100):
            flow = random_flow(rng, version)
            assert rss_core(flow, 128, keys.first) == rss_core(flow.reversed(), 128, keys.other)
            assert rss_core(flow, 128, RSS_KEY_SYMMETRIC) == rss_core(flow, 128)


def test_the_solution_space_is_exact() -> None:
    """A key with a bit flipped that is not free fails for some packets, and one with a free bit flipped for none."""
    keys = solve(("source",), (4,))
    rng = random.Random(4)
    flows = [(one, random_flow(rng, 4, source=one.source)) for one in (random_flow(rng, 4) for _ in range(200))]

    def holds(first: bytes) -> bool:
        return all(rss_core(one, 128, first) == rss_core(two, 128, first) for one, two in flows)

    bound = set(range(32 + 25, 96 + 31))  # the low bits of the windows of input bits 32 to 95
    for bit in range(200):
        flipped = bytearray(keys.first)
        flipped[bit // 8] ^= 0x80 >> bit % 8
        assert holds(bytes(flipped)) == (bit not in bound), bit


def test_a_spread_that_is_even() -> None:
    for fields in (("source",), ("source", "source_port"), ("destination", "destination_port"), FIELDS):
        for cores in (2, 3, 8):
            counts = spread(solve(fields, (4,)), cores)
            assert max(counts.values()) < 1.25 * sum(counts.values()) / cores


def test_icmp_is_hashed_by_addresses_alone_as_cards_do() -> None:
    key = bytes(range(40))
    flow = FiveTuple(1, "10.0.0.1", 77, "10.0.0.2", 77)
    assert rss_core(flow, 128, key) == toeplitz(key, bytes((10, 0, 0, 1, 10, 0, 0, 2))) % 128
    with pytest.raises(UsageError, match="40 bytes"):
        rss_core(flow, 128, bytes(39))


class PerHost(FlowActor):
    shards_by = ("source",)

    def on_open(self, packet: Packet) -> None:
        self.bind(packet.flow.reversed())

    def on_packet(self, packet: Packet) -> Any:
        return FORWARD


class PerHostAndService(PerHost):
    shards_by = {"quota": ("source",), "load": ("destination",)}


def test_the_cores_and_the_log_put_flows_where_the_declaration_says() -> None:
    """G1: whichever core a packet comes to, its host's flows are on one; a restart puts them there again."""
    PerHost.prepare()
    rings = [Ring.create("hand-off to 0"), Ring.create("hand-off to 1")]
    cores, lans, wans = [], [], []
    for index in range(2):
        lan, wan = MemoryPort("lan"), MemoryPort("wan")
        core = Core(PerHost, [lan, wan], index=index, cores=2, flows_max=1024, virtual_time=True)
        other = Handoff(rings[1 - index], rings[index])
        core.siblings.handoffs = [None, other] if index == 0 else [other, None]
        cores.append(core), lans.append(lan), wans.append(wan)
    hosts = [f"10.0.0.{number}" for number in range(2, 12)]
    for number, host in enumerate(hosts):
        for port in range(1000, 1010):
            lans[(number + port) % 2].feed([(1, frames.udp(host, port, f"198.51.100.{port % 7 + 1}", 53))])
    for core in (*cores, *cores):
        core.breathe()
    placement = Placement([None, None], ["lan", "wan"], PerHost.rss_keys())  # type: ignore[list-item]
    for index, core in enumerate(cores):
        for actor in core.actors():
            assert placement.home(actor.flow, 0) == placement.home(actor.flow.reversed(), 1) == index
    by_host = [{actor.flow.source for actor in core.actors()} for core in cores]
    assert not by_host[0] & by_host[1] and by_host[0] | by_host[1] == set(hosts) and all(by_host)
    # Answers come straight to their flow: nothing is handed over.
    before = [core.count()["handed_off"] for core in cores]
    for index, core in enumerate(cores):
        wans[index].feed(
            [(2, frames.udp(f.destination, 53, f.source, f.source_port)) for f in (a.flow for a in core.actors())]
        )
        core.breathe()
    assert [core.count()["handed_off"] for core in cores] == before
    assert sum(core.count()["flows_opened"] for core in cores) == 100


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rss", "actors.nat:SourceNAT"]) == 0
    text = capsys.readouterr().out
    assert "6d:5a:6d:5a" in text and "rx-flow-hash udp6 sdfn" in text and "every port" in text
    assert main(["rss", f"{__file__}:PerHost", "--json", "--cores", "4"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [facts["ip"] for facts in found["keys"]] == [[4], [6]] and "IPv4 and IPv6" in found["conflict"]
    assert all(len(bytes.fromhex(facts["first_port"].replace(":", ""))) == 40 for facts in found["keys"])
    assert main(["rss", f"{__file__}:PerHost", "--ip", "4"]) == 0
    assert "the hash depends on source" in capsys.readouterr().out
    assert main(["rss", f"{__file__}:PerHostAndService"]) == 1
    assert "no key: quota is divided by source, load by destination" in capsys.readouterr().out
    assert main(["rss", "actors.nat:SourceNAT", "--cores", "0"]) == 2

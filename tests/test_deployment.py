"""The deployment file: what it resolves to, and how it is refused."""

import os
from pathlib import Path

import pytest

from actornet.cli.main import main
from actornet.errors import UsageError
from actornet.limits import CORES_MAX, FLOWS_MAX
from actornet.node.deployment import ReplicationTable, load_deployment, nodes_of, read_key
from actornet.node.witness import EtcdAccess
from actornet.ports.table import PortTable

WHOLE = """
name = "edge"
nf = "actors.nat:SourceNAT"
cores = 2
key_file = "edge.key"
[settings]
address = "203.0.113.1"
[ports.lan]
interface = "lan0"
address = "10.0.0.1/24"
[ports.wan]
interface = "wan0"
address = "203.0.113.1/24"
gateway = "203.0.113.254"
mac = "02:00:5e:00:53:01"
[replication]
durability = "received"
without_backup = "wait"
[primary]
log = "/var/lib/actornet/edge-a"
link = "10.9.0.1:7400"
control = "127.0.0.1:7411"
[backup]
log = "log-b"
link = "10.9.0.1:7400"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "edge.toml"
    file.write_text(WHOLE)
    return file


def test_primary(file):
    deployment = load_deployment(file, "primary")
    assert (deployment.name, deployment.role, deployment.nf) == ("edge", "primary", "actors.nat:SourceNAT")
    assert (deployment.cores, deployment.cpus) == (2, None)
    assert deployment.key_file == file.parent / "edge.key"
    assert deployment.settings == {"address": "203.0.113.1"}
    assert list(deployment.ports) == ["lan", "wan"]
    assert deployment.ports["lan"].driver == "af_packet" and deployment.ports["lan"].gateway is None
    assert deployment.ports["wan"].mac == "02:00:5e:00:53:01"
    assert (deployment.durability, deployment.without_backup) == ("received", "wait")
    assert deployment.log == Path("/var/lib/actornet/edge-a")
    assert (deployment.links, deployment.control) == (["10.9.0.1:7400"], "127.0.0.1:7411")
    assert nodes_of(file) == ["primary", "backup"]


def test_backup_has_defaults_and_paths_relative_to_the_file(file, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    deployment = load_deployment(Path(os.path.relpath(file)), "backup")
    assert deployment.log == file.parent / "log-b"
    assert deployment.control == "127.0.0.1:7402"


def test_flags_override(file):
    overrides = {
        "cores": 1,
        "cpus": [3],
        "settings.address": "192.0.2.1",
        "settings.first": "2000",
        "ports.lan.interface": "veth1",
        "ports.dmz.interface": "dmz0",
        "replication.durability": "solo",
        "primary.log": "/elsewhere",
    }
    deployment = load_deployment(file, "primary", overrides)
    assert (deployment.cores, deployment.cpus) == (1, [3])
    assert deployment.settings == {"address": "192.0.2.1", "first": "2000"}
    assert deployment.ports["lan"].interface == "veth1" and deployment.ports["lan"].address == "10.0.0.1/24"
    assert list(deployment.ports) == ["lan", "wan", "dmz"]
    assert deployment.durability == "solo" and deployment.without_backup == "wait"
    assert deployment.log == Path("/elsewhere")


def test_flags_alone_are_enough():
    flags = {
        "nf": "nat.py:NAT",
        "key_file": "/etc/edge.key",
        "ports.lan.interface": "lan0",
        "primary.log": "/log",
        "replication.durability": "solo",
    }
    deployment = load_deployment(None, "primary", flags)
    assert (deployment.name, deployment.links, deployment.control) == ("node", [], "127.0.0.1:7401")
    assert deployment.without_backup == ReplicationTable().without_backup
    with pytest.raises(UsageError, match=r"^the flags: .*`nf`"):
        load_deployment(None, "primary", {"cores": 1})


FLAGS = """
--name n --nf a:B+c:D --cores 2 --cpus 1,0 --flows-max 9 --poll busy --port
lan=x0,address=10.1.0.1/8,gateway=10.1.0.9 --port lan=x1,driver=tap,mac=02:00:00:00:00:01 --set
first=1 --set A.last=2 --durability solo --without-backup stop --witness etcd:h:1 --lease-ms 400 --silence-ms 90
--etcd-ca ca --etcd-cert cert --etcd-key key --etcd-user me --etcd-password-file word
--keep-records 5000 --key-file k --log l --link 127.0.0.1:1 --listen 127.0.0.1:2 --control
127.0.0.1:3
"""


def test_every_key_of_the_file_has_a_flag(file, monkeypatch):
    """But for the tables of other nodes."""
    read = []
    monkeypatch.setattr("actornet.node.launcher.launch", lambda control, key, start, ready: read.append(start.argument))
    monkeypatch.setattr("actornet.node.deployment.read_key", lambda file: b"key")
    monkeypatch.setattr("actornet.node.events.configure", lambda **fields: None)
    monkeypatch.setattr(EtcdAccess, "context", lambda self: None)
    monkeypatch.setattr(EtcdAccess, "password", lambda self: "")
    words = FLAGS.split()
    assert main(["launch", "primary", str(file), *words]) == 0
    (d,) = read
    assert (d.name, d.nf, d.cores, d.cpus, d.flows_max, d.poll) == ("n", "a:B+c:D", 2, [1, 0], 9, "busy")
    assert d.ports["lan"] == PortTable("x1", "tap", "10.1.0.1/8", "10.1.0.9", "02:00:00:00:00:01")
    assert d.settings == {"address": "203.0.113.1", "first": "1", "A.last": "2"}
    assert (d.durability, d.without_backup, d.witness) == ("solo", "stop", "etcd:h:1")
    assert (d.lease_ms, d.silence_ms) == (400, 90)
    assert d.etcd == EtcdAccess("ca", "cert", "key", "me", "word").within(Path.cwd())
    assert (d.keep_records, d.links, d.listen, d.control) == (5000, ["127.0.0.1:1"], "127.0.0.1:2", "127.0.0.1:3")
    assert (d.key_file, d.log) == (Path("k").resolve(), Path("l").resolve())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"core": 2}, "unknown key `core`: did you mean `cores`?"),
        ({"ports.lan.adress": "x"}, "unknown key `ports.lan.adress`: did you mean `ports.lan.address`?"),
        ({"replication.mode": "x"}, "unknown key `replication.mode`: known are durability, without_backup"),
        ({"primary.logs": "x"}, "unknown key `primary.logs`: did you mean `primary.log`?"),
        ({"cores": "two"}, "`cores`: Expected `int`, got `str`"),
        ({"cores": 0}, f"`cores` = 0: choose 1 to {CORES_MAX}"),
        ({"flows_max": 0}, f"`flows_max` = 0: a core's flow table has 1 to {FLOWS_MAX} keys"),
        ({"cpus": [1]}, "`cpus` = [1]: name as many different CPUs as there are `cores` (2)"),
        ({"cpus": [1, 1]}, "`cpus` = [1, 1]: name as many"),
        ({"name": "a b"}, "`name` = 'a b': use letters"),
        ({"nf": "actors.nat"}, "`nf` = 'actors.nat': write \"module:Class\""),
        (
            {"replication.durability": "sometimes"},
            "`replication.durability` = 'sometimes': choose one of solo, received",
        ),
        ({"replication.silence_ms": 14}, "`replication.silence_ms` = 14: choose 15 to 10000"),
        ({"replication.lease_ms": 19}, "`replication.lease_ms` = 19: choose 20 to 60000"),
        ({"ports": {}}, "`ports` has 0 tables: describe 1 to 16"),
        ({"ports.lan": "lan0"}, "`ports.lan`: Expected `object`, got `str`"),
        ({"ports.lan.interface": "wan0"}, "`ports.lan.interface` = 'wan0': two ports cannot share an interface"),
        ({"ports.lan.interface": "a-very-long-name"}, "`ports.lan.interface` = 'a-very-long-name': no such name"),
        (
            {"ports.lan.driver": "dpdk"},
            "`ports.lan.driver` = 'dpdk': choose one of af_packet, af_xdp, tap, pcap, memory",
        ),
        ({"poll": "lazy"}, "`poll` = 'lazy': choose one of adaptive, busy"),
        ({"ports.lan.interface": 5}, "`ports.lan.interface`: Expected `str | null`, got `int`"),
        ({"ports.dmz": {"address": "10.0.0.1/8"}}, "`ports.dmz.interface` is missing"),
        ({"ports.dmz": "dmz0"}, "`ports.dmz`: Expected `object`, got `str`"),
        ({"ports.lan.address": "10.0.0.1"}, "`ports.lan.address` = '10.0.0.1': add the prefix length"),
        (
            {"ports.lan.address": "10.0.0.0.1/8"},
            "`ports.lan.address` = '10.0.0.0.1/8': write an address and its prefix",
        ),
        ({"ports.wan.gateway": "10.0.0.9"}, "it has to be another host of the port's network 203.0.113.0/24"),
        ({"ports.wan.gateway": "203.0.113.1"}, "it has to be another host"),
        ({"ports.wan.gateway": "none"}, "`ports.wan.gateway` = 'none': write an IP address"),
        ({"ports.dmz": {"interface": "d", "gateway": "10.0.0.1"}}, "`ports.dmz.gateway`: only a routed port has one"),
        ({"ports.wan.mac": "01:00:5e:00:53:01"}, "`ports.wan.mac` = '01:00:5e:00:53:01': write a unicast MAC"),
        ({"primary.control": "0.0.0.0:1"}, "`primary.control`: control address '0.0.0.0:1' is not"),
        ({"primary.link": "somewhere"}, "`primary.link` = 'somewhere': write an IP address and a port"),
        ({"primary.log": "log-b"}, "`backup.log` = 'log-b': it is the primary's too"),
        ({"name.x": 1}, "`name` is not a table"),
    ],
)
def test_mistakes_are_named_by_file_and_key_in_one_line(file, change, error):
    with pytest.raises(UsageError) as raised:
        load_deployment(file, "primary", change)
    assert str(raised.value).startswith(f"{file}: ")
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_parts(file):
    file.write_text(WHOLE.replace("[backup]", "[spare]"))
    with pytest.raises(UsageError, match="unknown key `spare`: known are nf, key_file"):
        load_deployment(file, "primary")
    file.write_text(WHOLE.partition("[backup]")[0])
    with pytest.raises(UsageError, match=r"there is no \[backup\] table: add one"):
        load_deployment(file, "backup")
    file.write_text(WHOLE.replace('link = "10.9.0.1:7400"', ""))
    with pytest.raises(UsageError, match=r"`primary\.link` is missing"):
        load_deployment(file, "primary")
    assert load_deployment(file, "primary", {"replication.durability": "solo"}).links == []
    with pytest.raises(UsageError, match=r"`backup\.link` is missing"):
        load_deployment(file, "backup", {"replication.durability": "solo"})


THIRD = """
[backups.c]
log = "log-c"
listen = "10.9.0.3:7400"
control = "127.0.0.1:7413"
"""
WITNESS = {"replication.witness": "file:/run/witness"}


def test_a_witness_directory_is_relative_to_the_file(file, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    changes = {"replication.witness": "file:lease"}
    assert load_deployment(file, "primary", changes).witness == f"file:{file.parent}/lease"
    with pytest.raises(UsageError, match=r"`replication\.witness`: witness 'file:': write"):
        load_deployment(file, "primary", {"replication.witness": "file:"})


RECORDED = {
    "ports": {
        "lan": {"driver": "pcap", "read": "in.pcap", "speed": 2, "write": "/out/lan.pcap"},
        "wan": {"driver": "pcap", "read": "in.pcap", "speed": 2},
        "load": {"driver": "memory", "read": "in.pcap", "packets_per_s": 1e6},
        "sink": {"driver": "memory"},
    }
}


def test_ports_on_captures(file):
    ports = load_deployment(file, "primary", RECORDED).ports
    assert (ports["lan"].read, ports["lan"].write) == (f"{file.parent}/in.pcap", "/out/lan.pcap")
    assert ports["load"].packets_per_s == 1e6 and ports["sink"].read is None


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            {"ports.lan.address": "10.0.0.1/8"},
            "`ports.lan.address`: driver pcap has no such key; it has read, write, speed",
        ),
        ({"ports.sink.write": "x"}, "`ports.sink.write`: driver memory has no such key; it has read, packets_per_s"),
        (
            {"ports.lan.driver": "tap"},
            "`ports.lan.read`: driver tap has no such key; it has interface, address, gateway, mac",
        ),
        ({"ports.lan.speed": -1}, "`ports.lan.speed` = -1: choose 0 (as fast as the core takes packets) to 1000000"),
        ({"ports.lan.speed": 1}, "`ports.wan.speed`: all pcap ports play at one speed; give each the same"),
        ({"ports.load.packets_per_s": 0}, "`ports.load.packets_per_s` = 0: choose up to 1000000000, or leave it out"),
        ({"ports.sink.packets_per_s": 9}, "`ports.sink.packets_per_s`: say of what, too: `read` = a capture"),
        (
            {"ports.third": RECORDED["ports"]["wan"]},
            "`ports.lan.read` = 'in.pcap': two ports, inside and outside, can share",
        ),
        ({"ports.wan.write": "in.pcap"}, "`ports.lan.read` = 'in.pcap': it is written as well; write to another file"),
    ],
)
def test_keys_that_do_not_go_with_captures_are_named(file, change, error):
    with pytest.raises(UsageError) as raised:
        load_deployment(file, "primary", RECORDED | change)
    assert str(raised.value).startswith(f"{file}: {error}")
    assert "\n" not in str(raised.value)


def test_more_than_one_backup(file):
    """G7: each finds the primary wherever it is by then; and a witness says who that is."""
    file.write_text(WHOLE.replace('"log-b"\n', '"log-b"\nlisten = "10.9.0.2:7400"\n') + THIRD)
    assert nodes_of(file) == ["primary", "backup", "c"]
    first = load_deployment(file, "primary", WITNESS)
    assert (first.listen, first.peers) == ("10.9.0.1:7400", ["10.9.0.2:7400", "10.9.0.3:7400"])
    second = load_deployment(file, "backup", WITNESS)
    assert (second.node, second.listen, second.links) == ("backup", "10.9.0.2:7400", ["10.9.0.1:7400", "10.9.0.3:7400"])
    third = load_deployment(file, "backup", WITNESS, node="c")
    assert (third.node, third.log.name, third.control) == ("c", "log-c", "127.0.0.1:7413")
    assert (third.listen, third.links) == ("10.9.0.3:7400", ["10.9.0.1:7400", "10.9.0.2:7400"])
    back = load_deployment(file, "backup", WITNESS, node="primary")
    assert back.links == back.peers == ["10.9.0.2:7400", "10.9.0.3:7400"]
    again = load_deployment(file, "primary", WITNESS, node="c")
    assert (again.role, again.node, again.listen) == ("primary", "c", "10.9.0.3:7400")


@pytest.mark.parametrize(
    ("change", "node", "error"),
    [
        (
            {"replication.witness": "none"},
            None,
            '`replication.witness` = "none": of 3 nodes two could take over at once',
        ),
        ({}, "d", "there is no [backups.d] table"),
        ({"backups.c.log": "log-b"}, None, "`backups.c.log` = 'log-b': it is the backup's too"),
        ({"backups.c.listen": "there"}, "c", "`backups.c.listen` = 'there': write an IP address and a port"),
        ({"backups.c.lisen": "there"}, None, "unknown key `backups.c.lisen`: did you mean `backups.c.listen`?"),
        ({"backups.a b": {"log": "x"}}, None, "`backups.a b`: name it otherwise"),
        ({"backups.d": {"log": "log-d", "listen": "10.9.0.4:1"}}, "d", "`backups.d.control` is missing"),
        ({f"backups.n{n}": {"log": f"log-{n}"} for n in range(3)}, None, "there are 6 nodes: at most 5"),
    ],
)
def test_mistakes_with_more_than_one_backup(file, change, node, error):
    file.write_text(WHOLE + THIRD)
    with pytest.raises(UsageError) as raised:
        load_deployment(file, "backup", WITNESS | change, node)
    assert error in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml does not exist"):
        load_deployment(tmp_path / "none.toml", "primary")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load_deployment(tmp_path, "primary")
    for content in (b"name = ", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(UsageError, match=r"bad\.toml is not TOML: "):
            load_deployment(tmp_path / "bad.toml", "primary")


def test_the_key_is_read_only_when_it_is_secret_and_long_enough(tmp_path):
    """G10: an authentication with a known or guessable key is none."""
    key_file = tmp_path / "edge.key"
    with pytest.raises(UsageError, match="does not exist: make one with `head -c 32"):
        read_key(key_file)
    key_file.write_bytes(b"k" * 32 + b"\n")
    key_file.chmod(0o640)
    assert read_key(key_file) == b"k" * 32
    key_file.chmod(0o644)
    with pytest.raises(UsageError, match="is open to every user: chmod 600"):
        read_key(key_file)
    key_file.chmod(0o600)
    key_file.write_bytes(b"k" * 31 + b"\n")
    with pytest.raises(UsageError, match="has 31 bytes, at least 32 are needed"):
        read_key(key_file)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_key(tmp_path)

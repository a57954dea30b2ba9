"""The witness's stores: one register, swapped by many at a time, in a directory and in a real etcd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from actornet.errors import UsageError, WitnessError
from actornet.node.witness import (
    OPEN,
    EtcdAccess,
    EtcdWitness,
    FileWitness,
    Witness,
    WitnessThread,
    check_directory,
    witness_at,
)
from actornet.replication.lease import Entry, Look, Swap

FIRST = Entry(1, 100_000, "primary/1", "p", 250)


@contextmanager
def run_etcd(directory: Path, scheme: str, flags: Sequence[str] = (), access: EtcdAccess = OPEN) -> Iterator[int]:
    """The client port of an etcd of its own."""
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed (Debian: etcd-server)")
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        client, peer = one.getsockname()[1], two.getsockname()[1]
    urls = [f"--{kind}-client-urls={scheme}://127.0.0.1:{client}" for kind in ("listen", "advertise")]
    process = subprocess.Popen(
        ["etcd", "--data-dir", str(directory), *urls, "--unsafe-no-fsync", *flags,
         f"--listen-peer-urls=http://127.0.0.1:{peer}", "--log-level=error"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(200):
            try:
                EtcdWitness("127.0.0.1", client, "ready", access).look()
                break
            except WitnessError:
                time.sleep(0.05)
        yield client
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with run_etcd(tmp_path_factory.mktemp("etcd"), "http") as port:
        yield port


@pytest.fixture(params=["file", "etcd"])
def witness(request: pytest.FixtureRequest, tmp_path: Path) -> Witness:
    if request.param == "file":
        return FileWitness(tmp_path / "witness")
    return EtcdWitness("127.0.0.1", request.getfixturevalue("etcd"), str(tmp_path))


def test_a_directory_that_is_not_there_is_not_made_but_for_the_last_part(tmp_path: Path) -> None:
    """G7: two nodes, one with a slip of the pen in its witness, would each have a witness of its own."""
    check_directory(f"file:{tmp_path}/new")
    check_directory("etcd:localhost:2379")
    with pytest.raises(
        UsageError, match=f"witness 'file:{tmp_path}/typo/dir': there is no directory {tmp_path}/typo; make"
    ):
        check_directory(f"file:{tmp_path}/typo/dir")
    with pytest.raises(WitnessError, match="No such file or directory"):
        FileWitness(tmp_path / "typo/dir/edge").swap(Entry(), FIRST)
    assert not (tmp_path / "typo").exists()
    assert FileWitness(tmp_path / "new/edge").swap(Entry(), FIRST)


def test_a_register(witness: Witness) -> None:
    """G7: only who has seen what is there can replace it."""
    assert witness.look() == Entry()
    assert witness.swap(Entry(), FIRST) and witness.look() == FIRST
    assert not witness.swap(Entry(), msgspec.structs.replace(FIRST, holder="backup/2"))
    second = msgspec.structs.replace(FIRST, serial=2)
    assert not witness.swap(msgspec.structs.replace(FIRST, epoch=7), second)
    assert witness.swap(FIRST, second) and witness.look() == second
    assert not witness.swap(FIRST, second)


def test_one_of_many_wins(witness: Witness) -> None:
    """G7: four who swap at the same time, over and over; every serial number is one's alone."""
    won: list[tuple[int, str]] = []

    def compete(name: str) -> None:
        mine = witness if name == "0" else _again(witness)
        for _ in range(50):
            seen = mine.look()
            new = Entry(seen.serial + 1, seen.serial + 1, name, name, 250)
            if mine.swap(seen, new):
                won.append((new.serial, name))

    threads = [threading.Thread(target=compete, args=(str(index),)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    serials = [serial for serial, _ in won]
    assert len(set(serials)) == len(serials) > 20
    assert max(serials) <= witness.look().serial <= 200


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> EtcdAccess:
    """What an etcd asks for that is open to nobody else: a certificate, and a user's password."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (Debian: openssl)")
    directory = tmp_path_factory.mktemp("access")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        openssl(
            "req",
            "-x509",
            *curve,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
            "-days",
            "1",
            "-subj",
            f"/CN={name}",
        )
    for name in ("server", "node"):
        # etcd's gateway refuses a certificate with a common name, lest it be taken for a user's.
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/O={name}")
        ca = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *ca, "-out", f"{name}.pem", "-days", "1")
    (directory / "password").write_text("secret\n")
    (directory / "password").chmod(0o600)
    return EtcdAccess("ca.pem", "node.pem", "node.key", "root", "password").within(directory)


@pytest.fixture(scope="module")
def closed_etcd(access: EtcdAccess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The client port of such an etcd."""
    directory = Path(access.ca or "").parent
    flags = [f"--cert-file={directory}/server.pem", f"--key-file={directory}/server.key"]
    flags += ["--client-cert-auth", f"--trusted-ca-file={access.ca}"]
    open_to_me = msgspec.structs.replace(access, user=None, password_file=None)
    with run_etcd(tmp_path_factory.mktemp("closed"), "https", flags, open_to_me) as port:
        me = EtcdWitness("127.0.0.1", port, "k", open_to_me)
        me._post("/v3/auth/user/add", {"name": "root", "password": "secret"})
        me._post("/v3/auth/role/add", {"name": "root"})
        me._post("/v3/auth/user/grant", {"user": "root", "role": "root"})
        me._post("/v3/auth/enable", {})
        yield port


def test_an_etcd_that_asks_who_one_is(closed_etcd: int, access: EtcdAccess) -> None:
    """G7, G10: by TLS, with a certificate, as a user; again when its token is no longer good; and nobody else."""
    witness = EtcdWitness("127.0.0.1", closed_etcd, "mine", access)
    assert witness.look() == Entry() and witness.swap(Entry(), FIRST) and witness.look() == FIRST
    witness._token = "expired"
    assert witness.look() == FIRST and witness._token != "expired"
    directory = Path(access.ca or "").parent
    (directory / "wrong").write_text("guess")
    (directory / "wrong").chmod(0o600)
    for wrong, said in (
        (msgspec.structs.replace(access, user=None, password_file=None), "permission denied"),
        (msgspec.structs.replace(access, password_file=str(directory / "wrong")), "answers 400"),
        (msgspec.structs.replace(access, ca=str(directory / "other.pem")), "certificate verify failed"),
        (msgspec.structs.replace(access, cert=None, key=None), "etcd:127.0.0.1"),
        (OPEN, "etcd:127.0.0.1"),
    ):
        with pytest.raises(WitnessError, match=said):
            EtcdWitness("127.0.0.1", closed_etcd, "mine", wrong).look()


def test_an_access_that_will_not_do(access: EtcdAccess) -> None:
    directory = Path(access.ca or "").parent
    (directory / "open").write_text("x")
    (directory / "open").chmod(0o644)
    for wrong, said in (
        (EtcdAccess(cert="c"), "goes with `etcd.key`"),
        (EtcdAccess(cert="c", key="k"), "both with `etcd.ca`"),
        (EtcdAccess(ca="/nowhere"), "No such file"),
        (EtcdAccess(ca=access.key), "/"),
        (EtcdAccess(ca=access.ca, cert=access.cert, key=access.ca), "/"),
        (EtcdAccess(user="u"), "goes with `etcd.password_file`"),
        (EtcdAccess(user="u", password_file="/nowhere"), "cannot be read"),
        (EtcdAccess(user="u", password_file=str(directory / "open")), "chmod 600"),
    ):
        with pytest.raises(UsageError, match=said):
            witness_at("etcd:127.0.0.1:1", "edge", wrong)


def _again(witness: Witness) -> Witness:
    """Another client of the same register."""
    if isinstance(witness, FileWitness):
        return FileWitness(witness.directory)
    assert isinstance(witness, EtcdWitness)
    again = EtcdWitness("127.0.0.1", int(witness.place.rpartition(":")[2]), "")
    again._key = witness._key
    return again


def test_who_slept_in_the_middle_of_a_swap_has_not_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: the number that it takes is free again, because others are far beyond it."""
    sleeper, other = FileWitness(tmp_path / "w"), FileWitness(tmp_path / "w")
    assert other.swap(Entry(), FIRST)
    seen = sleeper.look()
    newest = seen

    def look_then_sleep(self: FileWitness) -> Entry:
        nonlocal newest
        monkeypatch.setattr(FileWitness, "look", look)
        for serial in range(2, 6):
            new = Entry(serial, 200_000, "backup/2", "q", 250)
            assert other.swap(newest, new)
            newest = new
        return seen

    look = FileWitness.look
    monkeypatch.setattr(FileWitness, "look", look_then_sleep)
    assert not sleeper.swap(seen, Entry(2, 100_000, "primary/1", "p", 250))
    assert other.look() == newest


def test_a_witness_that_is_not_there() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(WitnessError, match=f"etcd:127.0.0.1:{port}"):
        EtcdWitness("127.0.0.1", port, "k").look()


def test_other_content_is_named(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "7").write_text("something else")
    with pytest.raises(WitnessError, match="w: "):
        FileWitness(tmp_path / "w").look()


@pytest.mark.parametrize("place", ["", "file:relative", "etcd:host", "etcd:host:x", "zookeeper:a:1"])
def test_wrong_places(place: str) -> None:
    with pytest.raises(UsageError, match="etcd:HOST:PORT"):
        witness_at(place, "edge")


def test_the_thread_answers_one_at_a_time(tmp_path: Path) -> None:
    wake = os.eventfd(0)
    witness = FileWitness(tmp_path / "w")
    line = WitnessThread(witness, wake)
    line.ask(Look())
    os.eventfd_read(wake)
    assert not line.busy and line.take() == Entry() and line.take() is None
    line.ask(Swap(Entry(), FIRST))
    os.eventfd_read(wake)
    assert line.take() is True
    line.close(Swap(FIRST, msgspec.structs.replace(FIRST, serial=2, lease_ms=0)))
    assert witness.look().lease_ms == 0, "what is given back at the end is waited for"
    os.close(wake)

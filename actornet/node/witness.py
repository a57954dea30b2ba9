"""The witness's stores: a register outside both nodes, to be read and swapped; and the thread that asks it.

`file:DIRECTORY` is for two nodes on one machine, or on a file system that both mount and whose `link` is atomic. Entry n is
the file n: made whole under another name, then linked, which fails if the number is taken. So there is no lock that a
frozen process could hold. `etcd:HOST:PORT` asks etcd 3 by its JSON gateway over HTTP, or HTTPS where it asks who one is.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import stat
import threading
from pathlib import Path
from typing import Any, Protocol

import msgspec

from actornet.errors import UsageError, WitnessError
from actornet.limits import WITNESS_TIMEOUT_MS
from actornet.node.thread import leave_sockets, run_first
from actornet.replication.lease import Entry, Look, Swap

_decode = msgspec.json.Decoder(Entry).decode
_encode = msgspec.json.Encoder().encode


class EtcdAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An `[etcd]` table: how to reach an etcd that is not open to all; paths are of PEM files.

    With `ca`, who has signed etcd's certificate, the connection is TLS; `cert` and `key` are this node's own. `user` is one of
    etcd's, with the password in `password_file`.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password_file: str | None = None

    def within(self, directory: Path) -> EtcdAccess:
        """The same, with paths that are relative to a directory."""
        ca, cert, key, password = (
            str(directory / path) if path is not None else None
            for path in (self.ca, self.cert, self.key, self.password_file)
        )
        return EtcdAccess(ca, cert, key, self.user, password)

    def check(self) -> None:
        """UsageError: it will not do."""
        self.context()
        self.password()

    def context(self) -> ssl.SSLContext | None:
        """Of TLS, None for plain HTTP. UsageError: what is missing or does not fit."""
        if (self.cert is None) != (self.key is None) or (self.cert is not None and self.ca is None):
            raise UsageError("`etcd.cert`: it goes with `etcd.key`, and both with `etcd.ca`")
        if self.ca is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except OSError as error:  # an SSLError is one
            raise UsageError(f"`etcd`: {self.ca}, {self.cert}, {self.key}: {error.strerror or error}") from None
        return context

    def password(self) -> str:
        """UsageError: it cannot be read."""
        if (self.user is None) != (self.password_file is None):
            raise UsageError("`etcd.user`: it goes with `etcd.password_file`")
        if self.password_file is None:
            return ""
        file = Path(self.password_file)
        try:
            if file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
                raise UsageError(f"`etcd.password_file` = {self.password_file!r} is open to every user: chmod 600 it")
            return file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"`etcd.password_file` = {self.password_file!r} cannot be read: {error}") from None


OPEN = EtcdAccess()
"""To an etcd that asks nobody who one is, by plain HTTP."""


class Witness(Protocol):
    """One register. Both methods raise WitnessError when it cannot be asked, or when it is unknown what it has done."""

    def look(self) -> Entry: ...

    def swap(self, old: Entry, new: Entry) -> bool:
        """Whether `new` is there now; if not, it did not replace `old`, or has been replaced in turn."""


def witness_at(place: str, deployment: str, access: EtcdAccess = OPEN) -> Witness:
    """The witness of a deployment at "file:DIRECTORY" or "etcd:HOST:PORT". UsageError for any other place, or for an etcd's
    `access` that will not do."""
    kind, _, where = place.partition(":")
    if kind == "file" and where.startswith("/"):
        return FileWitness(Path(where) / deployment)
    if kind == "etcd":
        host, _, port = where.rpartition(":")
        if host and port.isdecimal() and 0 < int(port) < 65536:
            return EtcdWitness(host.strip("[]"), int(port), f"actornet/{deployment}/lease", access)
    raise UsageError(f'witness {place!r}: write "none", "file:DIRECTORY" or "etcd:HOST:PORT"')


def check_directory(place: str) -> None:
    """UsageError if `place` is a directory that could not be made: a slip of the pen would be a witness of its own."""
    kind, _, where = place.partition(":")
    if kind == "file" and not Path(where).parent.is_dir():
        raise UsageError(f"witness {place!r}: there is no directory {Path(where).parent}; make it, or name another")


class FileWitness:
    """A directory of numbered files, of which the highest is the register's content."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def look(self) -> Entry:
        for _ in range(10):  # the file may be removed between the listing and the reading, for a newer one
            try:
                serial = self._highest()
                if not serial:
                    return Entry()
                return _decode((self.directory / str(serial)).read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, msgspec.DecodeError) as error:
                raise WitnessError(f"witness {self.directory}: {error}") from None
        raise WitnessError(f"witness {self.directory}: it changes faster than it can be read")

    def swap(self, old: Entry, new: Entry) -> bool:
        assert new.serial == old.serial + 1
        draft = self.directory / f"draft-{os.getpid()}-{threading.get_native_id()}"
        durable = new.epoch != old.epoch  # what a renewal says is of no use once the machine has gone down
        try:
            self.directory.parent.mkdir(exist_ok=True)
            self.directory.mkdir(exist_ok=True)
            if self.look() != old:
                return False
            with draft.open("wb") as file:
                file.write(_encode(new))
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            try:
                os.link(draft, self.directory / str(new.serial))
            except FileExistsError:
                return False
            finally:
                draft.unlink()
            if durable:
                self._sync_directory()
            # Who slept between the look and the link may have got a number that is free because it is long over.
            highest = self._highest()
            for number in self._numbers():
                if number < highest:
                    (self.directory / str(number)).unlink(missing_ok=True)
            return highest == new.serial
        except OSError as error:
            raise WitnessError(f"witness {self.directory}: {error.strerror}") from None

    def _numbers(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(self.directory) if name.isdecimal()]
        except FileNotFoundError:
            return []

    def _highest(self) -> int:
        return max(self._numbers(), default=0)

    def _sync_directory(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class EtcdWitness:
    """A key of etcd 3, compared and put in one transaction."""

    def __init__(self, host: str, port: int, key: str, access: EtcdAccess = OPEN) -> None:
        self.place = f"{host}:{port}"
        self._host, self._port = host, port
        self._key = _base64(key.encode())
        self._connection: http.client.HTTPConnection | None = None
        self._context = access.context()
        self._login = {"name": access.user, "password": access.password()}
        self._token: str | None = None

    def look(self) -> Entry:
        found = self._ask("/v3/kv/range", {"key": self._key}).get("kvs")
        if not found:
            return Entry()
        try:
            return _decode(base64.b64decode(found[0]["value"]))
        except (KeyError, ValueError, msgspec.DecodeError) as error:
            raise WitnessError(f"witness etcd:{self.place}: its key holds something else: {error}") from None

    def swap(self, old: Entry, new: Entry) -> bool:
        compare: dict[str, Any] = {"key": self._key, "target": "VALUE", "value": _base64(_encode(old))}
        if not old.serial:
            compare = {"key": self._key, "target": "CREATE", "create_revision": "0"}
        put = {"request_put": {"key": self._key, "value": _base64(_encode(new))}}
        return bool(self._ask("/v3/kv/txn", {"compare": [compare], "success": [put]}).get("succeeded", False))

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """As the user, if there is one: etcd knows it by a token, which lasts a while."""
        if self._login["name"] is None:
            return self._post(path, body)
        if self._token is not None:
            try:
                return self._post(path, body)
            except WitnessError:
                if self._token is not None:
                    raise
        self._token = self._post("/v3/auth/authenticate", self._login).get("token")
        return self._post(path, body)

    def _connect(self) -> http.client.HTTPConnection:
        timeout_s = WITNESS_TIMEOUT_MS / 1000
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._context)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = self._token
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.request("POST", path, json.dumps(body), headers)
            answer = self._connection.getresponse()
            text = answer.read()
            if answer.status == 401:
                self._token = None
            if answer.status != 200:
                raise WitnessError(f"witness etcd:{self.place} answers {answer.status}: {text[:200]!r}")
            content = json.loads(text)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._forget()
            raise WitnessError(f"witness etcd:{self.place}: {error or type(error).__name__}") from None
        except WitnessError:
            self._forget()
            raise
        if not isinstance(content, dict):
            raise WitnessError(f"witness etcd:{self.place} does not answer like etcd")
        return content

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class WitnessThread:
    """Asks the witness in a thread of its own, one request at a time: what waits for a disk or a network must not stall
    the owner system. `answer` has what came of the last request: an Entry, whether it was swapped, or the error.
    """

    def __init__(self, witness: Witness, wake: int) -> None:
        self.witness = witness
        self.answer: Entry | bool | WitnessError | None = None
        self.busy = False
        self._wake = wake  # an eventfd
        self._request: Look | Swap | None = None
        self._last: Swap | None = None
        self._ended = False
        self._due = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)
        self._thread.start()

    def ask(self, request: Look | Swap) -> None:
        assert not self.busy and self.answer is None
        self.busy = True
        self._request = request
        self._due.release()

    def take(self) -> Entry | bool | WitnessError | None:
        """The answer, once."""
        answer, self.answer = self.answer, None
        return answer

    def close(self, last: Swap | None) -> None:
        """End, after one last request, for which there is no answer."""
        self._last = last
        self._request = None
        self._ended = True
        self._due.release()
        self._thread.join(WITNESS_TIMEOUT_MS / 1000)

    def _run(self) -> None:
        leave_sockets()
        run_first()  # on a busy machine the lease would be over before an ordinary thread has renewed it
        while True:
            self._due.acquire()
            request = self._last if self._ended else self._request
            if request is None:
                return
            try:
                if isinstance(request, Look):
                    answer: Entry | bool | WitnessError = self.witness.look()
                else:
                    answer = self.witness.swap(request.old, request.new)
            except WitnessError as error:
                answer = error
            if self._ended:
                return
            self.answer = answer
            self.busy = False
            os.eventfd_write(self._wake, 1)

"""A simulated witness: one register that all nodes reach over lines that are slow, cut, or lose the answer."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from actornet.errors import WitnessError
from actornet.replication.lease import Entry, Look, Swap

MS = 1_000_000
TIMEOUT_MS = 10


class Register:
    """The witness. `cut_until_ns[node]`: until when nothing passes between it and that node."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.random = Random(0)
        self.entry = Entry(1)  # given back: nobody has to wait
        self.delay_ns = (MS // 20, MS)
        self.cut_until_ns = dict.fromkeys("abc", 0)
        self._durable = self.entry
        self._under_way: list[tuple[int, RegisterLine, Look | Swap]] = []

    def send(self, due_ns: int, line: RegisterLine, request: Look | Swap) -> None:
        self._under_way.append((due_ns, line, request))

    def run(self) -> None:
        """Carry out what has arrived by now, in order of arrival."""
        now_ns = self.clock()
        arrived = sorted((item for item in self._under_way if item[0] <= now_ns), key=lambda item: item[0])
        self._under_way = [item for item in self._under_way if item[0] > now_ns]
        for _, line, request in arrived:
            line.carried_out(self.look_or_swap(request))

    def look_or_swap(self, request: Look | Swap) -> Entry | bool:
        if isinstance(request, Look):
            return self.entry
        if self.entry != request.old:
            return False
        if request.new.epoch != self.entry.epoch:
            self._durable = request.new
        self.entry = request.new
        return True

    def restart(self) -> None:
        """Its machine goes down: of what it held, only new epochs were on the disk."""
        self.entry = self._durable
        self._under_way.clear()


class RegisterLine:
    """As `actornet.node.witness.WitnessThread`: one process's line to the witness. `clock`: how late it is for the process."""

    def __init__(self, register: Register, node: str, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._register = register
        self._node = node
        self.asked = False
        self._answer: Entry | bool | WitnessError | None = None
        self._answer_due_ns = self._late_ns = 0

    @property
    def busy(self) -> bool:
        self._register.run()
        now_ns = self._clock()
        if self.asked and self._answer is None and now_ns >= self._late_ns:
            self._answer, self._answer_due_ns = WitnessError("the witness does not answer"), now_ns
        return self.asked and (self._answer is None or now_ns < self._answer_due_ns)

    def ask(self, request: Look | Swap) -> None:
        register = self._register
        now_ns = self._clock()
        there, back = register.random.randint(*register.delay_ns), register.random.randint(*register.delay_ns)
        self.asked, self._answer = True, None
        self._late_ns = now_ns + TIMEOUT_MS * MS
        self._answer_due_ns = now_ns + there + back
        if now_ns < register.cut_until_ns[self._node]:
            if register.random.random() < 0.5:
                return  # the request is lost
            self._answer_due_ns = self._late_ns + 1  # the answer is
        register.send(now_ns + there, self, request)

    def carried_out(self, answer: Entry | bool) -> None:
        if self._answer_due_ns <= self._late_ns and self._answer is None:
            self._answer = answer

    def take(self) -> Entry | bool | WitnessError | None:
        answer, self._answer = self._answer, None
        self.asked = False
        return answer

    def close(self, last: Swap | None) -> None:
        if last is not None and self._register.clock() >= self._register.cut_until_ns[self._node]:
            self._register.run()
            self._register.look_or_swap(last)

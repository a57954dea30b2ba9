"""What flows' actors keep: no flow may take the memory of all.

Of some thousand handlers one's actor is looked at, by chance, so a flow that takes more and more is found after about as many
packets of its own, whatever else the core does. The more there was to look at, the longer until the next look: a flow of a
dozen objects costs a thousandth of the time of its handlers, one of 100,000 a twentieth. See keeps.h for what counts.
"""

import sys

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libc.string cimport memset

from actornet.engine.wire cimport slot_offset

from actornet.errors import FlowTooLargeError
from actornet.limits import KEEPS_LOOK_HANDLERS, KEEPS_TRIES_MAX

cdef extern from "keeps.h":
    struct an_keeps:
        PyObject *root
        PyObject *getsizeof
        Py_ssize_t bytes_max
        Py_ssize_t *fields
        uint64_t visits
        uint64_t tries_max
    Py_ssize_t an_keeps_measure(an_keeps *k, PyObject **values, int count)

DEF FIELDS = 64  # AN_KEEPS_FIELDS
DEF HANDLERS_PER_VISIT = 8  # to follow a reference takes 50 to 100 ns, half of what a handler does

cdef uint64_t look_handlers = KEEPS_LOOK_HANDLERS
cdef object getsizeof = sys.getsizeof


cdef class Keeps:
    """Looks at actors of `nf`, which may keep `nf.keeps_bytes_max`."""

    def __init__(self, nf):
        self.nf = nf
        self.names = tuple(name for name, _ in nf.field_defaults)[:FIELDS]
        self.offsets = [slot_offset(getattr(nf, name)) for name in self.names]
        self.bytes_max = nf.keeps_bytes_max
        self.due_in = look_handlers

    def measure(self, FlowBase flow not None) -> tuple:
        """Bytes that the actor alone keeps, and those of each field: bytes_max is looked for, no more than a little beyond."""
        cdef an_keeps k
        cdef PyObject *values[FIELDS]
        cdef int i, count = len(self.offsets)
        for i in range(count):
            values[i] = (<PyObject **>(<char *><PyObject *>flow + <Py_ssize_t>self.offsets[i]))[0]
        memset(&k, 0, sizeof(k))
        k.root, k.getsizeof, k.bytes_max, k.tries_max = <PyObject *>flow, <PyObject *>getsizeof, self.bytes_max, KEEPS_TRIES_MAX
        total = an_keeps_measure(&k, values, count)
        self.visits = k.visits
        return total, {name: k.fields[i] for i, name in enumerate(self.names)}

    cdef object look(self, FlowBase flow):
        """An error if the actor keeps too much, or None."""
        total, fields = self.measure(flow)
        self.chance = self.chance * <uint64_t>6364136223846793005 + 1
        self.due_in = <int>min(
            look_handlers // 2 + (self.chance >> 33) % look_handlers + HANDLERS_PER_VISIT * self.visits, 1 << 30)
        if total <= self.bytes_max:
            return None
        largest, field = 0, ""
        for part in flow.parts():
            for name, size in (fields if part is flow else Keeps(type(part)).measure(part)[1]).items():
                if size > largest:
                    largest, field = size, f"{type(part).__name__}.{name}"
        return FlowTooLargeError(
            f"{field} keeps {largest} bytes, of {total} or more that the flow keeps; keeps_bytes_max = {self.bytes_max} is the most")

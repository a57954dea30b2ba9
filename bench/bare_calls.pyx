"""Calls of Python handlers from C, as a core makes them, without anything else; for bench/calls.py."""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

cdef extern from "Python.h":
    PyObject *PyObject_Vectorcall(PyObject *callable, PyObject **args, size_t nargsf, PyObject *kwnames)
    int PyIter_Send(PyObject *iterator, PyObject *value, PyObject **result)


cdef class View:
    """What a handler reads of its packet."""

    cdef int port

    def __init__(self, int port):
        self.port = port

    @property
    def destination_port(self) -> int:
        return self.port


def call(handler, list actors not None, View view not None, int times, bint asynchronous):
    """Call `handler(actor, view)` for each of the actors in turn, so often; an `async def` one is driven to its end."""
    cdef PyObject *args[2]
    cdef PyObject *result
    cdef PyObject *value
    args[1] = <PyObject *>view
    for _ in range(times):
        for actor in actors:
            args[0] = <PyObject *>actor
            result = PyObject_Vectorcall(<PyObject *>handler, args, 2, NULL)
            if result == NULL:
                raise RuntimeError("the handler has failed")
            if asynchronous:
                value = NULL
                if PyIter_Send(result, <PyObject *>None, &value) != 0:
                    raise RuntimeError("the handler waits, or has failed")
                Py_DECREF(<object>result)
                result = value
            Py_DECREF(<object>result)

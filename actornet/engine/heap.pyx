"""Python's own memory in huge pages, for processes with very many flows.

A handler's packet touches its flow's actor, which lies anywhere among those of all flows: with small pages that is a miss of
the TLB for nearly each. CPython takes memory for small objects by arenas of 1 MiB; `use_huge_pages` has it take them from here.
"""

from libc.stdint cimport uint8_t, uint32_t

cdef extern from "heap.h" nogil:
    struct an_heap:
        uint8_t *base
        uint32_t used, returned
    bint an_heap_reserve(an_heap *heap)
    void *an_heap_alloc(an_heap *heap)
    bint an_heap_has(const an_heap *heap, const void *at)
    void an_heap_free(an_heap *heap, void *at)
    bint an_heap_wants(const an_heap *heap)
    bint an_heap_back(an_heap *heap)
    size_t AN_ARENA_BYTES

cdef extern from "Python.h":
    ctypedef struct PyObjectArenaAllocator:
        void *ctx
        void *(*alloc)(void *ctx, size_t size) noexcept
        void (*free)(void *ctx, void *at, size_t size) noexcept
    void PyObject_GetArenaAllocator(PyObjectArenaAllocator *allocator)
    void PyObject_SetArenaAllocator(PyObjectArenaAllocator *allocator)

cdef an_heap heap
cdef PyObjectArenaAllocator before  # gives what is not from here, and takes it back


cdef void *arena_alloc(void *ctx, size_t size) noexcept:
    cdef void *at = an_heap_alloc(&heap) if size == AN_ARENA_BYTES else NULL
    return at if at != NULL else before.alloc(before.ctx, size)


cdef void arena_free(void *ctx, void *at, size_t size) noexcept:
    if an_heap_has(&heap, at):
        an_heap_free(&heap, at)
    else:
        before.free(before.ctx, at, size)


def use_huge_pages() -> bool:
    """From now on, for the rest of the process. False, and all is as it was, where the addresses (64 GiB) are not to be had."""
    cdef PyObjectArenaAllocator allocator
    if heap.base != NULL:
        return True
    if not an_heap_reserve(&heap):
        return False
    PyObject_GetArenaAllocator(&before)
    allocator.ctx, allocator.alloc, allocator.free = NULL, arena_alloc, arena_free
    PyObject_SetArenaAllocator(&allocator)
    return True


def arenas() -> int:
    """How many are in use."""
    return heap.used - heap.returned


cdef bint heap_wants() noexcept nogil:
    """Whether memory should be backed ahead; see `an_heap_wants`."""
    return an_heap_wants(&heap)


cdef bint heap_back() noexcept nogil:
    """Back some; False: enough is. For a thread beside the one that runs handlers."""
    return an_heap_back(&heap)

/* How much memory an object alone keeps alive: what would be free if it went.
 *
 * An object counts when all references to it come from what counts already, so nothing that others have as well does:
 * classes, modules, the loop, a table that flows share. First what needs no memory of its own: whatever has one reference,
 * or as many as were met by then. What is left over has more: cycles (a node that knows its parent), and what is shared. A
 * bounded number of those is opened on trial, as the garbage collector does: those that are reached from outside, and all
 * that they lead to, are not ours. Objects without references in them (str, bytes, int) count by their share.
 *
 * Never runs Python code: references are found by tp_traverse, sizes asked of C alone.
 */
#ifndef ACTORNET_KEEPS_H
#define ACTORNET_KEEPS_H

#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

#define AN_KEEPS_FIELDS 64 /* those beyond count for the last */
#define AN_KEEPS_SHARED 1000 /* references to a leaf, beyond which so little of it is ours that it does not count */

struct an_met { /* an object with several references */
    PyObject *object;
    Py_ssize_t seen; /* references to it that were met */
    Py_ssize_t bytes; /* its own, and those of what it has of leaves */
    uint8_t field;
    uint8_t state; /* enum an_met_state */
};

enum an_met_state { AN_MET_WAITS = 0, AN_MET_COUNTED, AN_MET_TRIED, AN_MET_FOREIGN };

struct an_keeps {
    PyObject *root, *getsizeof;
    Py_ssize_t bytes, bytes_max;
    Py_ssize_t fields[AN_KEEPS_FIELDS];
    uint64_t visits; /* references that were followed */
    struct an_met *met; /* open addressing; `met_mask` + 1 slots */
    size_t met_mask, met_count;
    uint64_t tries_max; /* references that a trial may follow */
    PyObject **open; /* objects that count, or are on trial, and whose references were not followed yet */
    uint8_t *open_field;
    size_t open_count, open_max;
    struct an_met *on_trial; /* what is being opened */
    uint8_t field;
    int failed; /* no memory to go on: what was found so far counts */
};

static size_t an_keeps_slot(const struct an_keeps *k, const PyObject *o)
{
    uint64_t hash = ((uint64_t)(uintptr_t)o >> 4) * UINT64_C(0x9e3779b97f4a7c15);
    size_t at = (size_t)(hash >> 32) & k->met_mask;
    while (k->met[at].object && k->met[at].object != o)
        at = (at + 1) & k->met_mask;
    return at;
}

/* The object's slot, new if it was not met before; NULL: no memory. */
static struct an_met *an_keeps_meet(struct an_keeps *k, PyObject *o)
{
    if (2 * (k->met_count + 1) > k->met_mask) {
        size_t slots = k->met ? 2 * (k->met_mask + 1) : 64;
        struct an_met *old = k->met, *met = calloc(slots, sizeof *met);
        if (!met)
            return NULL;
        size_t old_slots = old ? k->met_mask + 1 : 0;
        k->met = met;
        k->met_mask = slots - 1;
        for (size_t i = 0; i < old_slots; i++)
            if (old[i].object)
                k->met[an_keeps_slot(k, old[i].object)] = old[i];
        free(old);
    }
    size_t at = an_keeps_slot(k, o);
    if (!k->met[at].object) {
        k->met[at].object = o;
        k->met[at].field = k->field;
        k->met_count++;
    }
    return &k->met[at];
}

static int an_keeps_open(struct an_keeps *k, PyObject *o)
{
    if (k->open_count == k->open_max) {
        size_t room = k->open_max ? 2 * k->open_max : 64;
        PyObject **open = realloc(k->open, room * sizeof *open);
        if (open)
            k->open = open;
        uint8_t *fields = realloc(k->open_field, room);
        if (fields)
            k->open_field = fields;
        if (!open || !fields)
            return k->failed = 1;
        k->open_max = room;
    }
    k->open[k->open_count] = o;
    k->open_field[k->open_count++] = k->field;
    return 0;
}

/* Bytes of the object itself. A class of the user's may say so in Python: it is not asked. */
static Py_ssize_t an_keeps_size(struct an_keeps *k, PyObject *o)
{
    PyTypeObject *type = Py_TYPE(o);
    if (PyBytes_CheckExact(o))
        return type->tp_basicsize + PyBytes_GET_SIZE(o);
    if (PyTuple_CheckExact(o))
        return 16 + type->tp_basicsize + PyTuple_GET_SIZE(o) * (Py_ssize_t)sizeof(PyObject *);
    if (PyUnicode_CheckExact(o) && PyUnicode_IS_COMPACT_ASCII(o))
        return (Py_ssize_t)sizeof(PyASCIIObject) + PyUnicode_GET_LENGTH(o) + 1;
    if (PyFloat_CheckExact(o))
        return type->tp_basicsize;
    if (PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) {
        static PyObject *name; /* interned, for good */
        if (!name && !(name = PyUnicode_InternFromString("__sizeof__"))) {
            PyErr_Clear();
            return type->tp_basicsize;
        }
        PyObject *method = _PyType_Lookup(type, name);
        if (!method || !Py_IS_TYPE(method, &PyMethodDescr_Type))
            return 16 + type->tp_basicsize;
    }
    PyObject *size = PyObject_CallOneArg(k->getsizeof, o);
    Py_ssize_t bytes = size ? PyLong_AsSsize_t(size) : -1;
    Py_XDECREF(size);
    if (bytes < 0) {
        PyErr_Clear();
        return type->tp_basicsize;
    }
    return bytes;
}

static void an_keeps_add(struct an_keeps *k, Py_ssize_t bytes)
{
    k->bytes += bytes;
    k->fields[k->field] += bytes;
}

static int an_keeps_is_global(PyObject *o)
{
    return PyType_Check(o) || PyModule_Check(o) || PyCFunction_Check(o);
}

/* A reference was found in something that is ours. */
static int an_keeps_visit(PyObject *o, void *keeps)
{
    struct an_keeps *k = keeps;
    Py_ssize_t references = Py_REFCNT(o);
    k->visits++;
    if (o == k->root || an_keeps_is_global(o))
        return 0;
    if (!PyObject_IS_GC(o)) {
        if (references < AN_KEEPS_SHARED)
            an_keeps_add(k, an_keeps_size(k, o) / references);
        return k->bytes > k->bytes_max;
    }
    if (references > 1) {
        struct an_met *met = an_keeps_meet(k, o);
        if (!met)
            return k->failed = 1;
        if (++met->seen < references || met->state)
            return 0;
        met->state = AN_MET_COUNTED;
    }
    an_keeps_add(k, an_keeps_size(k, o));
    if (k->bytes > k->bytes_max)
        return 1;
    return an_keeps_open(k, o);
}

/* A reference was found in something that is on trial. */
static int an_keeps_try(PyObject *o, void *keeps)
{
    struct an_keeps *k = keeps;
    Py_ssize_t references = Py_REFCNT(o);
    k->visits++;
    if (k->visits > k->tries_max)
        return 1;
    if (o == k->root || an_keeps_is_global(o))
        return 0;
    if (!PyObject_IS_GC(o)) {
        if (references < AN_KEEPS_SHARED)
            k->on_trial->bytes += an_keeps_size(k, o) / references;
        return 0;
    }
    PyObject *opened = k->on_trial->object; /* a table that grows moves its slots */
    struct an_met *met = an_keeps_meet(k, o);
    if (!met)
        return k->failed = 1;
    k->on_trial = &k->met[an_keeps_slot(k, opened)];
    met->seen++;
    if (met->state)
        return 0;
    met->state = AN_MET_TRIED;
    met->bytes += an_keeps_size(k, o);
    return an_keeps_open(k, o);
}

/* What something foreign leads to is foreign. */
static int an_keeps_disown(PyObject *o, void *keeps)
{
    struct an_keeps *k = keeps;
    if (!PyObject_IS_GC(o))
        return 0;
    struct an_met *met = &k->met[an_keeps_slot(k, o)];
    if (met->object != o || met->state != AN_MET_TRIED)
        return 0;
    met->state = AN_MET_FOREIGN;
    return an_keeps_open(k, o);
}

/* What an object has; of a function not the module that it is from. Stops as soon as `visit` does. */
static int an_keeps_traverse(PyObject *o, visitproc visit, struct an_keeps *k)
{
    if (!PyFunction_Check(o))
        return Py_TYPE(o)->tp_traverse(o, visit, k);
    PyFunctionObject *f = (PyFunctionObject *)o;
    PyObject *parts[] = {f->func_closure, f->func_defaults, f->func_kwdefaults, f->func_dict};
    for (int i = 0; i < 4; i++)
        if (parts[i] && visit(parts[i], k))
            return 1;
    return 0;
}

static int an_keeps_follow(struct an_keeps *k, visitproc visit)
{
    while (k->open_count) {
        PyObject *o = k->open[--k->open_count];
        k->field = k->open_field[k->open_count];
        if (visit == an_keeps_try)
            k->on_trial = &k->met[an_keeps_slot(k, o)];
        if (an_keeps_traverse(o, visit, k))
            return 1;
    }
    return 0;
}

/* What has more references than were met. */
static void an_keeps_hold_trial(struct an_keeps *k)
{
    size_t slots = k->met ? k->met_mask + 1 : 0;
    k->open_count = 0;
    for (size_t i = 0; i < slots; i++) {
        struct an_met *met = &k->met[i];
        if (!met->object || met->state != AN_MET_WAITS)
            continue;
        k->field = met->field;
        met->state = AN_MET_TRIED;
        met->bytes = an_keeps_size(k, met->object);
        if (an_keeps_open(k, met->object))
            return;
    }
    k->tries_max += k->visits;
    if (an_keeps_follow(k, an_keeps_try))
        return; /* too much to tell whose it is */
    slots = k->met ? k->met_mask + 1 : 0;
    for (size_t i = 0; i < slots; i++) {
        struct an_met *met = &k->met[i];
        if (met->object && met->state == AN_MET_TRIED && met->seen < Py_REFCNT(met->object)) {
            met->state = AN_MET_FOREIGN;
            if (an_keeps_open(k, met->object))
                return;
        }
    }
    if (an_keeps_follow(k, an_keeps_disown))
        return;
    for (size_t i = 0; i < slots; i++)
        if (k->met[i].object && k->met[i].state == AN_MET_TRIED) {
            k->field = k->met[i].field;
            an_keeps_add(k, k->met[i].bytes);
        }
}

/* Bytes that `root` alone keeps by its `count` fields (NULL: empty), or a little more than `bytes_max` if they are more;
 * `fields` has the bytes of each, as far as it was looked at. */
static Py_ssize_t an_keeps_measure(struct an_keeps *k, PyObject **values, int count)
{
    int more = 0;
    for (int i = 0; i < count && !more; i++) {
        k->field = (uint8_t)(i < AN_KEEPS_FIELDS ? i : AN_KEEPS_FIELDS - 1);
        more = (values[i] && an_keeps_visit(values[i], k)) || an_keeps_follow(k, an_keeps_visit);
    }
    if (!more)
        an_keeps_hold_trial(k);
    free(k->met);
    free(k->open);
    free(k->open_field);
    return k->bytes;
}

#endif

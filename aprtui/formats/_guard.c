/* Memory maps that outlive their file: where it was cut short, zeros are read and the loss is noted.
 *
 * Reading a page of a map that the file no longer reaches, or that its disk cannot give, raises
 * SIGBUS, which ends the process. For the maps that are watched here the handler puts empty pages in
 * the place of what is gone, from that page to the map's end, and remembers it: whoever reads asks
 * afterwards (formats/maps.py). Faults anywhere else go to the handler of before.
 *
 * Optional: without a C compiler stage files are copied, and models' sizes checked, as they are read.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

#define SLOTS 4096

/* A map that is watched. ``start`` is written last and cleared first: 0 is a free slot. */
typedef struct {
    _Atomic uintptr_t start;
    _Atomic size_t bytes;
    atomic_int writable;
    atomic_int lost;
} slot;

static slot slots[SLOTS];
static atomic_int used; /* slots from here on were never taken */
static struct sigaction before;
static uintptr_t page_bytes;

static int stand_in(slot *map, uintptr_t at)
{
    const uintptr_t start = atomic_load(&map->start);
    const size_t bytes = atomic_load(&map->bytes);
    if (start == 0 || at < start || at - start >= bytes) return 0;
    const uintptr_t first = at & ~(page_bytes - 1);
    const uintptr_t end = (start + bytes + page_bytes - 1) & ~(page_bytes - 1);
    const int access = atomic_load(&map->writable) ? PROT_READ | PROT_WRITE : PROT_READ;
    atomic_store(&map->lost, 1); /* before anybody can read a zero */
    return mmap((void *)first, end - first, access,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    const int error = errno;
    const int count = atomic_load(&used);
    for (int i = 0; i < count; i++)
        if (stand_in(&slots[i], (uintptr_t)info->si_addr)) {
            errno = error;
            return;
        }
    errno = error;
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(number, info, context);
    else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)
        sigaction(number, &before, NULL); /* the instruction faults again, and that ends it */
    else
        before.sa_handler(number);
}

/* Ours, also where a library took the signal meanwhile (Ray does when it starts): it is asked after
   us then. */
static int install(void)
{
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK}, now;
    if (sigaction(SIGBUS, NULL, &now) != 0) return 0;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_fault) return 1;
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    before = now;
    action.sa_sigaction = on_fault;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, NULL) == 0;
}

PyDoc_STRVAR(watch_doc, "watch(map, writable) -> the number of the map's slot.\n\n"
                        "Raises OSError where no handler can be installed or all slots are taken.");

static PyObject *watch(PyObject *self, PyObject *args)
{
    Py_buffer map;
    int writable;
    if (!PyArg_ParseTuple(args, "y*p", &map, &writable)) return NULL;
    const uintptr_t start = (uintptr_t)map.buf;
    const size_t bytes = (size_t)map.len;
    PyBuffer_Release(&map);
    if (!install()) return PyErr_SetFromErrno(PyExc_OSError);
    for (int i = 0; i < SLOTS; i++) {
        if (atomic_load(&slots[i].start)) continue;
        atomic_store(&slots[i].bytes, bytes);
        atomic_store(&slots[i].writable, writable);
        atomic_store(&slots[i].lost, 0);
        atomic_store(&slots[i].start, start);
        if (i >= atomic_load(&used)) atomic_store(&used, i + 1);
        return PyLong_FromLong(i);
    }
    PyErr_SetString(PyExc_OSError, "too many maps");
    return NULL;
}

static slot *slot_of(PyObject *args)
{
    int number;
    if (!PyArg_ParseTuple(args, "i", &number)) return NULL;
    if (number >= 0 && number < SLOTS) return &slots[number];
    PyErr_SetString(PyExc_ValueError, "no such slot");
    return NULL;
}

PyDoc_STRVAR(forget_doc, "forget(slot): the map is gone or about to go; its slot is free again.");

static PyObject *forget(PyObject *self, PyObject *args)
{
    slot *map = slot_of(args);
    if (map == NULL) return NULL;
    atomic_store(&map->start, 0);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(lost_doc, "lost(slot) -> whether bytes of the map were no longer there to be read.");

static PyObject *lost(PyObject *self, PyObject *args)
{
    slot *map = slot_of(args);
    if (map == NULL) return NULL;
    return PyBool_FromLong(atomic_load(&map->lost));
}

static PyMethodDef methods[] = {
    {"watch", watch, METH_VARARGS, watch_doc},
    {"forget", forget, METH_VARARGS, forget_doc},
    {"lost", lost, METH_VARARGS, lost_doc},
    {NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "aprtui.formats._guard", "Maps of files that may be cut short.", -1,
    methods,
};

PyMODINIT_FUNC PyInit__guard(void) { return PyModule_Create(&module); }

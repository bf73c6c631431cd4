/* What each of a trace's hundreds of files costs, without Python's lock: its numbers and its write.
 *
 * The pass that is watched needs that lock; a writer that takes and gives it ten times a file holds
 * the pass up. Optional: without a C compiler summary.py and atomic.py do the same.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define LANES 16   /* fixed: the same sums on every processor */
#define PIECE 4096 /* values after which it is seen whether all were finite */
#define MOST_BYTES (1 << 30) /* that one call of write takes */

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define BY_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BY_PROCESSOR
#endif

typedef struct {
    double sum, squares, low, high;
    long long finite, zeros, nan;
} numbers;

/* Of whole groups of LANES values; a sum that is not finite tells that one of them was not. */
BY_PROCESSOR static void add_lanes(const float *x, size_t n, numbers *out)
{
    double sum[LANES] = {0}, squares[LANES] = {0};
    float low[LANES], high[LANES];
    int32_t zeros[LANES] = {0};
    for (int k = 0; k < LANES; k++) low[k] = INFINITY, high[k] = -INFINITY;
    for (size_t i = 0; i < n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            float value = x[i + k];
            double wide = value;
            sum[k] += wide;
            squares[k] += wide * wide;
            low[k] = value < low[k] ? value : low[k];
            high[k] = value > high[k] ? value : high[k];
            zeros[k] += value == 0.0f;
        }
    for (int k = 0; k < LANES; k++) {
        out->sum += sum[k], out->squares += squares[k], out->zeros += zeros[k];
        out->low = low[k] < out->low ? low[k] : out->low;
        out->high = high[k] > out->high ? high[k] : out->high;
    }
    out->finite += (long long)n;
}

static void add_each(const float *x, size_t n, numbers *out)
{
    for (size_t i = 0; i < n; i++) {
        double wide = x[i];
        if (isnan(wide)) out->nan++;
        if (!isfinite(wide)) continue;
        out->finite++;
        out->sum += wide;
        out->squares += wide * wide;
        out->zeros += wide == 0.0;
        out->low = wide < out->low ? wide : out->low;
        out->high = wide > out->high ? wide : out->high;
    }
}

PyDoc_STRVAR(measure_doc,
             "measure(address, n)\n\n"
             "Of n float32 values: (sum, sum of squares, least, largest) of the finite ones, and\n"
             "(finite, zeros, NaN) how many. Other threads run meanwhile.");

static PyObject *measure(PyObject *self, PyObject *args)
{
    unsigned long long address;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "Kn", &address, &n)) return NULL;
    if (n < 0) return PyErr_Format(PyExc_ValueError, "negative size");
    const float *x = (const float *)(uintptr_t)address;
    numbers all = {0, 0, INFINITY, -INFINITY, 0, 0, 0};
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t first = 0; first < n; first += PIECE) {
        size_t size = (size_t)(n - first < PIECE ? n - first : PIECE), whole = size - size % LANES;
        numbers before = all;
        add_lanes(x + first, whole, &all);
        if (!isfinite(all.sum)) {
            all = before;
            whole = 0;
        }
        add_each(x + first + whole, size - whole, &all);
    }
    Py_END_ALLOW_THREADS
    return Py_BuildValue("ddddLLL", all.sum, all.squares, all.low, all.high, all.finite, all.zeros,
                         all.nan);
}

/* All of it; -1 and errno where it cannot be. */
static int put_all(int fd, const char *bytes, Py_ssize_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, bytes, n < MOST_BYTES ? (size_t)n : MOST_BYTES);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return -1;
        bytes += done;
        n -= done;
    }
    return 0;
}

/* 0: the file is there. 1: nothing was done, and Python has to. -1: errno says why not. */
static int write_file(int folder, const char *part, const char *path, Py_buffer *header,
                      Py_buffer *values)
{
    struct stat found;
    if (fstatat(folder, path, &found, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISREG(found.st_mode))
        return 1; /* a link, say */
    int fd = openat(folder, part, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
    if (fd < 0) return errno == ENOENT || errno == EINTR ? 1 : -1; /* a folder is to be made */
    (void)flock(fd, LOCK_EX | LOCK_NB); /* it is being written: atomic.py does not sweep it */
    int failed = put_all(fd, header->buf, header->len) || put_all(fd, values->buf, values->len);
    int why = errno;
    if (close(fd) && !failed) failed = 1, why = errno;
    if (!failed && renameat(folder, part, folder, path)) failed = 1, why = errno;
    if (!failed) return 0;
    unlinkat(folder, part, 0);
    errno = why;
    return -1;
}

PyDoc_STRVAR(write_doc,
             "write(folder, part, path, header, values)\n\n"
             "Write two buffers into the new file ``part``, which then takes the name ``path``;\n"
             "both are relative to the folder of that descriptor, or to the current one (-1).\n"
             "False, and nothing done, where that takes more: a folder is missing, or what stands\n"
             "there is no file. Raises OSError; then nothing remains. Other threads run meanwhile.");

static PyObject *write_parts(PyObject *self, PyObject *args)
{
    PyObject *part, *path;
    Py_buffer header, values;
    int folder;
    if (!PyArg_ParseTuple(args, "iO&O&y*y*", &folder, PyUnicode_FSConverter, &part,
                          PyUnicode_FSConverter, &path, &header, &values))
        return NULL;
    if (folder < 0) folder = AT_FDCWD;
    int done, why;
    const char *from = PyBytes_AsString(part), *to = PyBytes_AsString(path);
    Py_BEGIN_ALLOW_THREADS
    done = write_file(folder, from, to, &header, &values);
    why = errno;
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&header);
    PyBuffer_Release(&values);
    Py_DECREF(part);
    Py_DECREF(path);
    if (done >= 0) return PyBool_FromLong(done == 0);
    errno = why;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyMethodDef methods[] = {
    {"measure", measure, METH_VARARGS, measure_doc},
    {"write", write_parts, METH_VARARGS, write_doc},
    {NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "aprtui.formats._stage_file", "A stage file's numbers and write in C.",
    0, methods,
};

PyMODINIT_FUNC PyInit__stage_file(void)
{
    return PyModule_Create(&module);
}

/* Sums over rows in C: what comparing two blocks of float32 values leaves of each row, in one pass.
 *
 * Optional, as the decoders are: where no compiler was at hand when aprtui was installed, NumPy
 * computes the same in more passes. Built for three instruction sets on x86-64 and for the machine's
 * own elsewhere; the one to use is chosen when the module is loaded.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define SUMS 5
#define PIECE 1024 /* values summed in float32 before float64 takes over: 64 a lane */

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t bits __attribute__((vector_size(LANES * sizeof(float))));
typedef void (*measurer)(const float *x, const float *y, size_t columns, double *sums);

#if defined(__GNUC__) && defined(__x86_64__)
#define BY_PROCESSOR 1
#ifdef __clang__
#define AVX512 __attribute__((target("avx512f")))
#else
#define AVX512 __attribute__((target("avx512f,prefer-vector-width=512")))
#endif
#define TARGET AVX512
#define NAME(x) x##_avx512
#include "_row_sums_kernel.h"

#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_avx2
#include "_row_sums_kernel.h"
#endif

#define TARGET
#define NAME(x) x##_plain
#include "_row_sums_kernel.h"

static measurer measure_row = row_plain;

static void choose_instructions(void)
{
#ifdef BY_PROCESSOR
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        measure_row = row_avx512;
    else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        measure_row = row_avx2;
#endif
}

PyDoc_STRVAR(measure_doc,
             "measure(x, y, rows, columns, sums, places, n_places, sample_x, sample_y)\n\n"
             "Compare float32 [rows, columns] at address ``y`` with those at address ``x``. Writes\n"
             "float64 [rows, 5] to address ``sums``: of each row the sums of d*d, x*x, y*y and x*d\n"
             "with d = y - x, and the largest |d|; and the values of the columns ``places``, int64\n"
             "[n_places], to ``sample_x`` and ``sample_y``, float32 [rows, n_places]. Returns\n"
             "whether all sums are finite: NaN and infinite values make some that are not. Raises\n"
             "ValueError for a place outside the columns. Other threads run meanwhile.");

static PyObject *measure(PyObject *self, PyObject *args)
{
    unsigned long long x, y, sums, places, sample_x, sample_y;
    Py_ssize_t rows, columns, n;
    if (!PyArg_ParseTuple(args, "KKnnKKnKK", &x, &y, &rows, &columns, &sums, &places, &n,
                          &sample_x, &sample_y))
        return NULL;
    if (rows < 0 || columns < 0 || n < 0) return PyErr_Format(PyExc_ValueError, "negative sizes");
    const float *a = (const float *)(uintptr_t)x, *b = (const float *)(uintptr_t)y;
    const int64_t *at = (const int64_t *)(uintptr_t)places;
    double *out = (double *)(uintptr_t)sums;
    float *kept_a = (float *)(uintptr_t)sample_x, *kept_b = (float *)(uintptr_t)sample_y;
    for (Py_ssize_t k = 0; k < n; k++)
        if (at[k] < 0 || at[k] >= columns)
            return PyErr_Format(PyExc_ValueError, "place %lld of %zd", (long long)at[k], columns);
    double all = 0; /* a sum that is not finite makes it NaN */
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t row = 0; row < rows; row++, a += columns, b += columns, out += SUMS) {
        measure_row(a, b, (size_t)columns, out);
        for (int k = 0; k < SUMS; k++) all += 0 * out[k];
        for (Py_ssize_t k = 0; k < n; k++) *kept_a++ = a[at[k]], *kept_b++ = b[at[k]];
    }
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(all == 0);
}

static PyMethodDef methods[] = {{"measure", measure, METH_VARARGS, measure_doc}, {NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "aprtui.engine._row_sums", "Sums over rows in C.", 0, methods,
};

PyMODINIT_FUNC PyInit__row_sums(void)
{
    choose_instructions();
    return PyModule_Create(&module);
}

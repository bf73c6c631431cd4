/* Block decoders in C: the same values as block_decoders.py, bit for bit, several times as fast.
 *
 * Optional: where no compiler was at hand when aprtui was installed, torch decodes. Plain C that the
 * compiler vectorises, built for three instruction sets on x86-64 and for the machine's own
 * elsewhere; the one to use is chosen when the module is loaded.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define KINDS 13
typedef void (*decoder)(const uint8_t *restrict in, float *restrict out, size_t n);

typedef struct {
    const char *name;
    size_t bytes;
    size_t values;
} kind;

/* In the order of the decoders' tables. */
static const kind kinds[KINDS] = {
    {"Q4_0", 18, 32},   {"Q4_1", 20, 32},   {"Q5_0", 22, 32},    {"Q5_1", 24, 32},
    {"Q8_0", 34, 32},   {"Q2_K", 84, 256},  {"Q3_K", 110, 256},  {"Q4_K", 144, 256},
    {"Q5_K", 176, 256}, {"Q6_K", 210, 256}, {"IQ4_NL", 18, 32},  {"IQ4_XS", 136, 256},
    {"APR_Q4", 18, 32},
};

static inline uint32_t word(const uint8_t *in)
{
    return in[0] | in[1] << 8 | in[2] << 16 | (uint32_t)in[3] << 24;
}

/* A little-endian IEEE float16. 2^112 moves its exponent's bias to float32's, subnormals too. */
static inline float half(const uint8_t *in)
{
    const uint32_t bits = in[0] | in[1] << 8;
    uint32_t magnitude = (bits & 0x7FFF) << 13, sign = (bits & 0x8000) << 16;
    float value;
    memcpy(&value, &magnitude, 4);
    value *= 0x1p112f;
    memcpy(&magnitude, &value, 4);
    if ((bits & 0x7C00) == 0x7C00) magnitude = 0x7F800000 | (bits & 0x03FF) << 13;
    magnitude |= sign;
    memcpy(&value, &magnitude, 4);
    return value;
}

#if defined(__GNUC__) && defined(__x86_64__)
#define BY_PROCESSOR 1
#ifdef __clang__
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c")))
#else
#define AVX512                                                                              \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c,prefer-vector-width=512")))
#endif

#define TARGET AVX512
#define NAME(x) x##_avx512
#include "_native_decoders.h"

#define TARGET __attribute__((target("avx2,f16c")))
#define NAME(x) x##_avx2
#include "_native_decoders.h"
#endif

#define TARGET
#define NAME(x) x##_plain
#include "_native_decoders.h"

static const decoder *decoders = decoders_plain;

static void choose_decoders(void)
{
#ifdef BY_PROCESSOR
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        decoders = decoders_avx512;
    else if (__builtin_cpu_supports("avx2"))
        decoders = decoders_avx2;
#endif
}

PyDoc_STRVAR(decode_doc,
             "decode(type_name, blocks, blocks_bytes, out, out_values)\n\n"
             "Decode the blocks at address ``blocks`` into float32 values at address ``out``.\n"
             "Raises ValueError for an unknown type and for sizes that do not belong together.\n"
             "Other threads run meanwhile.");

static PyObject *decode(PyObject *self, PyObject *args)
{
    const char *name;
    unsigned long long blocks, out;
    Py_ssize_t bytes, values;
    if (!PyArg_ParseTuple(args, "sKnKn", &name, &blocks, &bytes, &out, &values)) return NULL;
    for (int i = 0; i < KINDS; i++) {
        if (strcmp(kinds[i].name, name)) continue;
        const size_t n = (size_t)bytes / kinds[i].bytes;
        if (bytes < 0 || n * kinds[i].bytes != (size_t)bytes ||
            n * kinds[i].values != (size_t)values)
            return PyErr_Format(PyExc_ValueError, "%zd bytes of %s are not %zd values", bytes,
                                name, values);
        Py_BEGIN_ALLOW_THREADS
        decoders[i]((const uint8_t *)(uintptr_t)blocks, (float *)(uintptr_t)out, n);
        Py_END_ALLOW_THREADS
        Py_RETURN_NONE;
    }
    return PyErr_Format(PyExc_ValueError, "no decoder for %s", name);
}

static PyMethodDef methods[] = {{"decode", decode, METH_VARARGS, decode_doc}, {NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "aprtui.engine._native", "Block decoders in C.", 0, methods,
};

PyMODINIT_FUNC PyInit__native(void)
{
    choose_decoders();
    PyObject *made = PyModule_Create(&module);
    if (made == NULL) return NULL;
    PyObject *names = PyTuple_New(KINDS);
    for (int i = 0; names != NULL && i < KINDS; i++)
        PyTuple_SetItem(names, i, PyUnicode_FromString(kinds[i].name));
    if (names == NULL || PyModule_AddObject(made, "TYPES", names) < 0) {
        Py_XDECREF(names);
        Py_DECREF(made);
        return NULL;
    }
    return made;
}

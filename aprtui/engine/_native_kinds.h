/* The block types that _native.c decodes, as it shows them to other modules in a capsule. */
#ifndef APRTUI_NATIVE_KINDS
#define APRTUI_NATIVE_KINDS
#include <stddef.h>
#include <stdint.h>

#define KINDS 13
#define DECODERS_CAPSULE "aprtui.engine._native.DECODERS"

typedef void (*decoder)(const uint8_t *restrict in, float *restrict out, size_t n);

typedef struct {
    const char *name;
    size_t bytes;   /* of a block */
    size_t values;  /* in a block */
    decoder decode; /* for this processor */
} kind;
#endif

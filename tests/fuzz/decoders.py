"""The decoders in C on random blocks under AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m tests.fuzz.decoders [CASES]

Every decoder of every instruction set that this processor has reads blocks from memory that ends
where they end and writes values into memory that ends where they end; what they write is the same.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import aprtui.engine

_HARNESS = r"""
#include <stdio.h>
#include <stdlib.h>

static uint64_t state = 88172645463325252u;

static uint64_t chance(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

int main(int argc, char **argv)
{
    const long cases = atol(argv[argc - 1]);
    choose_decoders();
    const decoder *sets[] = {decoders_plain,
#ifdef BY_PROCESSOR
                             __builtin_cpu_supports("avx2") ? decoders_avx2 : NULL,
                             __builtin_cpu_supports("avx512bw") ? decoders_avx512 : NULL,
#endif
    };
    for (long number = 0; number < cases; number++)
        for (int kind = 0; kind < KINDS; kind++) {
            const size_t n = chance() % 5, bytes = n * kinds[kind].bytes;
            const size_t size = n * kinds[kind].values * sizeof(float);
            uint8_t *in = malloc(bytes);
            float *first = malloc(size);
            for (size_t i = 0; i < bytes; i++) in[i] = number % 7 ? chance() >> 17 : 0xFF;
            for (size_t set = 0; set < sizeof sets / sizeof *sets; set++) {
                if (sets[set] == NULL) continue;
                float *out = set ? malloc(size) : first;
                sets[set][kind](in, out, n);
                if (memcmp(first, out, size)) {
                    fprintf(stderr, "%s: instruction set %zu differs\n", kinds[kind].name, set);
                    return 1;
                }
                if (set) free(out);
            }
            free(first);
            free(in);
        }
    printf("%ld cases of each of %d block types: no report\n", cases, KINDS);
    return 0;
}
"""


def main() -> int:
    cases = sys.argv[1] if len(sys.argv) > 1 else "20000"
    source = Path(aprtui.engine.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        harness, program = Path(folder) / "harness.c", Path(folder) / "harness"
        # All of it but what speaks to Python.
        decoders = (source / "_native.c").read_text().partition("PyDoc_STRVAR(")[0]
        harness.write_text(decoders.replace("#include <Python.h>", "") + _HARNESS)
        build = [
            "cc", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
            "-ffp-contract=off", f"-I{source}", str(harness), "-o", str(program), "-lm",
        ]  # fmt: skip
        subprocess.run(build, check=True)
        return subprocess.run([program, cases], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

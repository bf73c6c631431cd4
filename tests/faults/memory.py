"""The peak memory and the time of reading what was made to take the most of both.

    python -m tests.faults.memory

Each file is just inside its reader's limits, or as large as can be where it is refused; each is
read in a process of its own. Prints a table; exit code 1 where reading took over 20 s or 256 MB, or
512 MB where the tokenizers library builds.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aprtui.formats.layout import EVENTS, MANIFEST
from tests.unit.apr_files import AprFile
from tests.unit.gguf_writer import key, string

MOST_MB, MOST_S = 256, 20
LIBRARY_MB = 512  # of a tokenizer.json: what its library takes for the largest published

_READ = """
import sys, time
from pathlib import Path
from aprtui.errors import AprtuiError
from aprtui.contracts.document import NotReadable
from aprtui.contracts.parse import parse_contract
from aprtui.compare.saved import load
from aprtui.engine.events import parse_event
from aprtui.formats.tracedir import open_trace
from aprtui.model.open import read_model_file
from aprtui.model.tokenizer import build_tokenizer, spec_from_folder
import aprtui.contracts.validate
how, path = sys.argv[1], Path(sys.argv[2])
def status(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name))
    return int(line.split()[1]) / 1000
open("/proc/self/clear_refs", "w").write("5")
before, began, said = status("VmRSS"), time.process_time(), "read"
try:
    {"model": read_model_file, "trace": lambda p: open_trace(p.parent), "saved": load,
     "contract": lambda p: parse_contract(aprtui.contracts.validate._read(p)),
     "tokenizer": lambda p: build_tokenizer(spec_from_folder(p.parent)),
    }[how](path)
except (AprtuiError, NotReadable) as error:
    said = str(error).replace(str(path) + ": ", "")[:90]
print(f"{status('VmHWM') - before:.0f} {time.process_time() - began:.1f} {said}")
"""


def _filled(head: bytes, one: bytes, end: bytes, size: int) -> bytes:
    """``head``, as many of ``one`` (with a number in it for ``%d``) as ``size`` bytes hold, end."""
    if b"%d" not in one:
        return head + b",".join([one] * (size // (len(one) + 1))) + end
    count = size // (len(one) + 5)
    return head + b",".join(one.replace(b"%d", b"%d" % number) for number in range(count)) + end


def _safetensors(tensors: int) -> bytes:
    entry = b':{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(b'"%d"' % number + entry for number in range(tensors)) + b"}"
    return len(header).to_bytes(8, "little") + header


def _gguf(keys: list[bytes], tensors: int = 0) -> bytes:
    entries = (
        string(b"t%d" % number) + struct.pack("<IQIQ", 1, 0, 0, 0) for number in range(tensors)
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(keys))
    return b"".join([head, *keys, *entries, bytes(64)])


def _strings(count: int, text: bytes) -> bytes:
    return _gguf([key("a", 9, struct.pack("<IQ", 8, count) + string(text) * count)])


def _long_text(size: int) -> bytes:
    return _gguf([key("a", 8, string(b"x" * (size - 4) + "\U0001f600".encode()))])


def _vocabulary(size: int) -> bytes:
    return AprFile([], _filled(b'{"tokenizer.vocabulary":[', b'"t%d"', b"]}", size)).build()


_TRACE = b'{"schema":"aprtui-trace-v1","stages":[],"x":['
_SAVED = b'{"schema":"x","a":['
_VOCABULARY = b'{"model":{"type":"BPE","merges":[],"vocab":{'
_WIDE = '"\U0001f600%d"'.encode()
_MB = 1_000_000
# name: (how it is read, the file's name, what makes it)
CASES: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "manifest, lists": ("trace", MANIFEST, partial(_filled, _TRACE, b"[]", b"]}", 6 * _MB)),
    "manifest, objects": ("trace", MANIFEST, partial(_filled, _TRACE, b'{"a":1}', b"]}", 6 * _MB)),
    "manifest, refused": ("trace", MANIFEST, partial(_filled, _TRACE, b"[]", b"]}", 60 * _MB)),
    "manifest, too long": ("trace", MANIFEST, partial(_filled, _TRACE, b"[]", b"]}", 250 * _MB)),
    "events, one long line": (
        "trace", EVENTS, partial(_filled, b'{"event":"plan","x":[', b"[]", b"]}", 250 * _MB)
    ),
    "saved diff, wide text": ("saved", "s.json", partial(_filled, _SAVED, _WIDE, b"]}", 14 * _MB)),
    "safetensors, 120,000 tensors": ("model", "m.safetensors", partial(_safetensors, 120_000)),
    "safetensors, a million": ("model", "m.safetensors", partial(_safetensors, _MB)),
    "gguf, 190,000 tensors": ("model", "m.gguf", partial(_gguf, [], 190_000)),
    "gguf, a million tensors": ("model", "m.gguf", partial(_gguf, [], _MB)),
    "gguf, 4,000,000 strings": ("model", "m.gguf", partial(_strings, 4 * _MB, b"")),
    "gguf, 46 MB of strings": ("model", "m.gguf", partial(_strings, 2_900_000, b"12345678")),
    "gguf, 60,000 keys": (
        "model", "m.gguf", lambda: _gguf([key(f"k{n}", 0, 1) for n in range(60_000)])
    ),
    "gguf, one long text": ("model", "m.gguf", partial(_long_text, 15 << 20)),
    "apr, a vocabulary": ("model", "m.apr", partial(_vocabulary, 16 * _MB)),
    "contract, 99,000 keys": (
        "contract", "c.yaml", lambda: b"".join(b"k%d: v\n" % n for n in range(99_000))
    ),
    "contract, lists": ("contract", "c.yaml", partial(_filled, b"a: [", b"[]", b"]", 2 * _MB)),
    "tokenizer": (
        "tokenizer", "tokenizer.json", partial(_filled, _VOCABULARY, b'"%d":7', b"}}}", 9 * _MB)
    ),
}  # fmt: skip


def main() -> int:
    print(f"{'file':<29} {'size':>8} {'memory':>8} {'time':>7}  outcome")
    worst = 0
    for name, (how, file, build) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / file
            path.write_bytes(build())
            size = path.stat().st_size / 1e6
            line = [sys.executable, "-c", _READ, how, str(path)]
            ended = subprocess.run(line, capture_output=True, text=True, check=False)
        memory, took, said = (ended.stdout.strip() or f"0 0 {ended.stderr[-90:]}").split(" ", 2)
        print(f"{name:<29} {size:>5.1f} MB {memory:>5} MB {took:>5} s  {said}", flush=True)
        most = LIBRARY_MB if how == "tokenizer" else MOST_MB
        worst |= float(memory) > most or float(took) > MOST_S or bool(ended.returncode)
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())

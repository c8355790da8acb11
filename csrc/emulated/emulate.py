"""Copies sources, their AVX-512 and VNNI replaced by csrc/emulated/avx512.h: emulate.py <csrc> <folder> <file>..."""

import re
import sys
from pathlib import Path

REPLACED = [
    (r"#include <immintrin\.h>", '#include "emulated/avx512.h"'),
    (r'target\("[^"]*"\)', 'target("avx2,fma,f16c")'),
    (r'"avx2,[^"]*"', '"avx2,fma,f16c"'),  # handed to a macro
    (r"_mm256_(dpbusd|dpwssd)(_avx)?_epi32", r"emulated::\1_256"),
    (r"_mm512_", "emulated::"),
    (r"__m512i", "emulated::I512"),
    (r"__m512\b", "emulated::F512"),
    (r'asm\("" : "\+v"\(v\)\);', ""),  # no register has 64 bytes
    (r'__asm__ volatile\("" : "\+v".*', ""),
    (r"(?m)^#if defined\(__GNUC__\) && !defined\(__clang__\)$", "#if 0  // assembly"),
    (r"(?m)^  f\.vex_vnni = .*", "  f.vex_vnni = f.avx512vnni = f.avx2;"),  # of cpu/isa.cpp
]


def main(source: Path, folder: Path, names: list[str]) -> None:
    """Write the copies; end with a message where a line to replace is found in none of the files any more."""
    texts = {name: (source / name).read_text(encoding="utf-8") for name in names}
    for pattern, by in REPLACED:
        n_found = 0
        for name, text in texts.items():
            texts[name], n = re.subn(pattern, by, text)
            n_found += n
        if n_found == 0:
            sys.exit(f"{__file__}: {pattern} matches in none of {', '.join(names)}; what has become of that line?")
    for name, text in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text(encoding="utf-8") != text:  # else it would be compiled again
            file.write_text(text, encoding="utf-8")


main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])

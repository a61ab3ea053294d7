#!/usr/bin/env python3
"""Who may include whom. A folder includes its own headers, and of the folders listed for it the public
ones (not *_int.h), always by their path from src/. The table is the layer map of src/README.md.
--self-test feeds it includes that must be refused."""
import glob
import os
import re
import sys

BELOW_SPEC = "base file tok dev kv model"
MAY = {
    "base": "",
    "file": "base",
    "tok": "base",
    "dev": "base",
    "kv": "base dev",
    "model": "base file dev kv",
    "spec": BELOW_SPEC,
    "engine": BELOW_SPEC + " spec kakeya.h",
    "serve": "base tok engine kakeya.h",
    "cli": "base file tok model engine serve kakeya.h",
    "bench": BELOW_SPEC + " spec engine kakeya.h",
    "include": "base",  # base/err.h, which `make install` puts into the installed header
}
# Headers of the world that only one place may know.
QUARANTINE = {
    r"cuda.*|cublas.*|nccl.*|mma\.h": "src/dev/cuda/",
    r"immintrin\.h|arm_neon\.h|x86intrin\.h": "src/dev/cpu/",
    r"grpc/.*|event2/.*": "src/serve/",
    r"sqlite3\.h": "src/engine/",
    r"histedit\.h": "src/cli/",
}
GENERATED = {"kk_build.h"}
# Private headers that one more place may see: the bench of single kernels needs the kernels.
ALSO = {("bench", "dev/cpu/kern_int.h")}


def folder_of(path):
    """The layer a file belongs to, or None if it is outside them (tests, tools)."""
    parts = path.split("/")
    if parts[0] == "src":
        return parts[1]
    return parts[0] if parts[0] in MAY else None


def problem(path, quote, name):
    """What is wrong with a line #include "name" (or <name>) in path; None if nothing."""
    if quote == "<":
        for pattern, home in QUARANTINE.items():
            if re.fullmatch(pattern, name) and not path.startswith((home, "tests/", "bench/")):
                return f"<{name}> belongs in {home}"
        return None
    if name in GENERATED or name.endswith(".pb-c.h") and path.startswith(("src/serve/", "tests/")):
        return None
    me, private = folder_of(path), name.endswith("_int.h")
    if path.startswith("tests/"):
        mirrored = path.split("/")[2] if path.startswith("tests/unit/") else None
        if private and name.split("/")[0] != mirrored:
            return f"only tests/unit/{name.split('/')[0]} may see {name}"
        return None
    if me is None:
        return None
    if me not in MAY:
        return f"folder '{me}' is in no layer: add it to tools/check_layers.py and src/README.md"
    if name == "kakeya.h":
        return None if me == "include" or "kakeya.h" in MAY[me].split() else f"{me} may not include it"
    if "/" not in name:
        return "write the path from src/" if path.startswith("src/") else None
    target = name.split("/")[0]
    if target == me:
        return None
    if target not in MAY[me].split():
        return f"{me} may include {MAY[me] or 'nothing of ours'}, not {target}"
    return f"{name} is private to {target}" if private and (me, name) not in ALSO else None


def includes(text):
    for i, line in enumerate(text.split("\n")):
        m = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
        if m:
            yield i + 1, m.group(1), m.group(2)


def say(what, found):
    print(f"{'not ok' if found else 'ok'} - {what}")
    for place in found:
        print("    " + place)
    return not found


def check_tree():
    patterns = ("src/**/*.[ch]", "src/**/*.cu", "include/*.h", "bench/**/*.[ch]", "tests/**/*.[ch]")
    found, n = [], 0
    for path in sorted(p for x in patterns for p in glob.glob(x, recursive=True)):
        with open(path, encoding="utf-8") as f:
            for line, quote, name in includes(f.read()):
                n += 1
                bad = problem(path, quote, name)
                if bad:
                    found.append(f"{path}:{line}: {name}: {bad}")
    return say(f"{n} include lines follow the layers", found)


def self_test():
    cases = [  # path, line, must it be refused?
        ("src/base/buf.c", '#include "base/buf.h"', False),
        ("src/base/buf.c", '#include "tok/tok.h"', True),
        ("src/kv/kv.c", '#include "dev/dev.h"', False),
        ("src/kv/kv.c", '#include "model/model.h"', True),
        ("src/kv/kv.c", '#include "dev/check_int.h"', True),
        ("src/kv/kv.c", '#include "kv_int.h"', True),
        ("src/kv/kv.c", '#include "kv/kv_int.h"', False),
        ("src/dev/cpu/attn.c", '#include "dev/cpu/kern_int.h"', False),
        ("src/dev/cpu/attn.c", '#include <immintrin.h>', False),
        ("src/model/gemma4.c", '#include <immintrin.h>', True),
        ("src/dev/cpu/attn.c", '#include "kv/kv.h"', True),
        ("src/model/gemma4.c", '#include "engine/engine.h"', True),
        ("src/model/gemma4.c", '# include "tok/tok.h"', True),
        ("src/engine/engine.c", '#include "spec/spec.h"', False),
        ("src/engine/engine.c", '#include "kakeya.h"', False),
        ("src/dev/dev.c", '#include "kakeya.h"', True),
        ("src/engine/engine.c", '#include <grpc/grpc.h>', True),
        ("src/cli/run.c", '#include "kv/kv.h"', True),
        ("src/cli/run.c", '#include "engine/engine_int.h"', True),
        ("src/cli/run.c", '#include "kakeya.h"', False),
        ("src/serve/grpc.c", '#include <grpc/grpc.h>', False),
        ("src/serve/wire.c", '#include "kakeya/v1/runtime.pb-c.h"', False),
        ("src/cli/serve.c", '#include "kakeya/v1/runtime.pb-c.h"', True),
        ("src/new/x.c", '#include "base/err.h"', True),
        ("bench/kern.c", '#include "dev/cpu/kern_int.h"', False),
        ("bench/kern.c", '#include "kv/kv_int.h"', True),
        ("tests/unit/kv/test_kv.c", '#include "kv/kv_int.h"', False),
        ("tests/unit/kv/test_kv.c", '#include "model/model_int.h"', True),
        ("src/dev/cuda/mem.cu", '#include <cuda_runtime.h>', False),
        ("src/engine/plan.c", '#include <cuda_runtime.h>', True),
    ]
    wrong = [f"{path}: {line}" for path, line, bad in cases
             if any(problem(path, q, name) for _, q, name in includes(line)) != bad]
    return say(f"{len(cases)} cases", wrong)


def main():
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return 0 if (self_test() if "--self-test" in sys.argv else check_tree()) else 1


if __name__ == "__main__":
    sys.exit(main())

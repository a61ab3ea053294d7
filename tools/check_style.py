#!/usr/bin/env python3
"""House style that a program can check. Prints one line per rule, "ok - ..." or "not ok - ..." with
the places under it. --self-test feeds each rule text that breaks it."""
import glob
import os
import re
import shutil
import subprocess
import sys

COLUMNS = 100
FUNCTION_WARN, FUNCTION_MAX, FORWARD_MAX = 70, 120, 200
C_WARN, C_MAX, HEADER_MAX = 800, 1500, 250
LONGER = {  # headers that may be longer, and why
    "src/dev/dev.h": 450,  # the stage-op table: one seam, one contract per op
    "src/dev/cpu/kern_vec_int.h": 600,  # kernels written once, compiled by each k_*.c: code, no contract
    "src/dev/cuda/stream_ring_int.h": 350,  # its rings and sums
    "src/dev/cuda/stream_int.h": 500,  # kernel templates of linear.cu and moe.cu: code, no contract
    "src/dev/cuda/step_attend_int.h": 420,  # parts of step.cu: code, no contract
    "src/dev/cuda/step_row_int.h": 320,
    "src/dev/cuda/large_int.h": 500,
    "src/dev/cpu/kern_rows_int.h": 300,  # likewise
}
CLANG_FORMAT = 14

NEVER = "strcpy strcat sprintf vsprintf atoi atol atof strtok gets alloca asprintf vasprintf".split()
MEMORY = "malloc calloc realloc free strdup strndup posix_memalign aligned_alloc".split()
SAYS = "exit printf puts putchar".split()

# Pieces, so that this file does not hold what it looks for.
MACHINE = ["/wo" "rk/", "/ro" "ot/", "/tm" "p/k"]
REGISTRY = ["py" "pi.org", "python" "hosted.org", "npm" "js.org", "deb." "debian.org",
            "crates" ".io", "proxy.go" "lang.org", "ana" "conda.org", "ruby" "gems.org"]


class File:
    """path, lines, and for C `code`: the lines with comments and string contents blanked out."""

    def __init__(self, path, text):
        self.path, self.text = path, text
        self.lines = text.split("\n")
        self.is_c = path.endswith((".c", ".h", ".cu", ".cuh"))
        self.code = blank(text).split("\n") if self.is_c else []


def blank(text):
    def keep_shape(m):
        s = m.group(0)
        if s[0] in "\"'":
            return s[0] + " " * (len(s) - 2) + s[-1]
        return re.sub(r"[^\n]", " ", s)

    token = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\''
    return re.sub(token, keep_shape, text, flags=re.S)


def functions(f):
    """(name, first line number, number of lines): a body starts and ends with a brace in column 1."""
    start = None
    for i, line in enumerate(f.code):
        if line.rstrip() == "{":
            start = i
        elif start is not None and line.startswith("}"):
            head = []
            for j in range(start - 1, -1, -1):
                if not f.code[j].strip() or f.code[j].rstrip().endswith((";", "}")):
                    break
                head.insert(0, f.code[j])
            names = re.findall(r"(\w+)\s*\(", " ".join(head))
            names = [n for n in names if n not in ("__attribute__", "target", "aligned")]
            if names:
                first = start - len(head)
                yield names[0], first + 1, i - first + 1
            start = None


def calls(names):
    return re.compile(r"(?<![\w.>])(" + "|".join(names) + r")\s*\(")


def hits(files, pattern, allowed, what):
    for f in files:
        if f.is_c and not allowed(f.path):
            for i, line in enumerate(f.code):
                m = pattern.search(line)
                if m:
                    yield f"{f.path}:{i + 1}: {m.group(1)}: {what}"


def function_length(files):
    for f in files:
        for name, line, n in functions(f):
            limit = FORWARD_MAX if name.endswith("_forward") else FUNCTION_MAX
            if n > limit:
                yield f"{f.path}:{line}: {name} has {n} lines, at most {limit}"


def file_length(files):
    for f in files:
        n = len(f.lines) - 1
        limit = HEADER_MAX if f.path.endswith((".h", ".cuh")) else C_MAX
        limit = LONGER.get(f.path, limit)
        if f.is_c and n > limit:
            yield f"{f.path}: {n} lines, at most {limit}"


def columns(files):
    for f in files:
        for i, line in enumerate(f.lines):
            if f.is_c and len(line) > COLUMNS:
                yield f"{f.path}:{i + 1}: {len(line)} columns, at most {COLUMNS}"


def tabs_and_blanks(files):
    for f in files:
        for i, line in enumerate(f.lines):
            if f.is_c and "\t" in line:
                yield f"{f.path}:{i + 1}: tab"
            if line != line.rstrip() and not f.path.endswith((".md", ".txt")) and is_source(f.path):
                yield f"{f.path}:{i + 1}: blank at the end"
        if is_source(f.path) and f.text and not f.text.endswith("\n"):
            yield f"{f.path}: no newline at the end"


def banned(files):
    yield from hits(files, calls(NEVER), lambda p: False, "never")
    yield from hits(files, calls(MEMORY), lambda p: not p.startswith("src/") or
                    p == "src/base/mem.c", "use base/mem.h")
    yield from hits(files, calls(["getenv"]), lambda p: p in ("src/base/config.c",) or
                    p.startswith("tests/"), "only src/base/config.c reads the environment")
    yield from hits(files, calls(SAYS), lambda p: not p.startswith("src/") or
                    p.startswith("src/cli/"), "a library neither prints nor exits")


def foreign(files):
    pattern = re.compile("|".join(re.escape(s) for s in MACHINE + REGISTRY))
    for f in files:
        for i, line in enumerate(f.lines):
            m = pattern.search(line)
            if m:
                yield f"{f.path}:{i + 1}: '{m.group(0)}': a path of one machine, or a registry"


def guards(files):
    for f in files:
        if not f.path.endswith(".h"):
            continue
        directives = [x.strip() for x in f.code if x.strip().startswith("#")]
        stem = re.sub(r"^(src|include|tests|tests/unit)/", "", f.path)
        want = re.sub(r"\W", "_", stem).upper()
        want = want if want.startswith(("KK_", "KAKEYA")) else "KK_" + want
        if f.path.startswith(("tests/", "bench/")) and directives:
            want = re.sub(r"^#ifndef (KK_\w+_H)$|.*", r"\1", directives[0]) or want
        if directives[:2] != [f"#ifndef {want}", f"#define {want}"] or directives[-1] != "#endif":
            yield f"{f.path}: include guard must be {want}"


RULES = [
    ("functions are short", function_length),
    ("files are short", file_length),
    (f"{COLUMNS} columns", columns),
    ("no tabs, no trailing blanks", tabs_and_blanks),
    ("no banned functions", banned),
    ("no paths of one machine, no registries", foreign),
    ("include guards", guards),
]


def is_source(path):
    return path.endswith((".c", ".h", ".cu", ".cuh", ".py", ".sh", ".mk")) or path == "Makefile"


def read_tree():
    """Every text file that git knows or could add (all files where there is no git)."""
    p = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True)
    paths = p.stdout.splitlines() if p.returncode == 0 else [
        x for x in glob.glob("**", recursive=True) if not x.startswith("build/")]
    for path in sorted(set(paths)):
        if os.path.isfile(path) and (is_source(path) or os.path.getsize(path) < 1 << 20):
            with open(path, "rb") as f:
                data = f.read()
            if b"\0" not in data[:8192]:
                yield File(path, data.decode("utf-8", "replace"))


def formatter():
    for name in (f"clang-format-{CLANG_FORMAT}", "clang-format"):
        if shutil.which(name):
            version = subprocess.run([name, "--version"], capture_output=True, text=True).stdout
            if f"version {CLANG_FORMAT}." in version:
                return name
    return None


def check_format(files):
    program = formatter()
    if not program:
        print(f"ok - clang-format # skip version {CLANG_FORMAT} is not on this machine")
        return True
    paths = [f.path for f in files if f.is_c]
    p = subprocess.run([program, "--dry-run", "--Werror"] + paths, capture_output=True, text=True)
    places = re.findall(r"^(\S+?:\d+):\d+: error", p.stderr, re.M)
    return say("clang-format", [f"{x}: 'make format' changes this" for x in places] if p.returncode else [])


def say(rule, found):
    print(f"{'not ok' if found else 'ok'} - {rule}")
    for place in found[:40]:
        print("    " + place)
    if len(found) > 40:
        print(f"    and {len(found) - 40} more")
    return not found


def warnings(files):
    for f in files:
        if f.path.endswith((".c", ".cu")) and len(f.lines) - 1 > C_WARN:
            print(f"warning: {f.path}: {len(f.lines) - 1} lines, aim under {C_WARN}")
        for name, line, n in functions(f):
            if n > FUNCTION_WARN and not name.endswith("_forward"):
                print(f"warning: {f.path}:{line}: {name} has {n} lines, aim under {FUNCTION_WARN}")


def self_test():
    body = lambda name, n: f"int {name}(void)\n{{\n" + "    x();\n" * n + "}\n"
    guard = "#ifndef KK_A_B_H\n#define KK_A_B_H\n%s#endif\n"
    cases = [  # rule, path, text, must it be found?
        (function_length, "src/a/b.c", body("f", 130), True),
        (function_length, "src/a/b.c", body("f", 110), False),
        (function_length, "src/a/b.c", body("gemma4_forward", 190), False),
        (function_length, "src/a/b.c", body("gemma4_forward", 210), True),
        (file_length, "src/a/b.c", "\n" * 1501, True),
        (file_length, "src/a/b.h", "\n" * 251, True),
        (file_length, "src/a/b.c", "\n" * 1400, False),
        (columns, "src/a/b.c", "x" * 101 + "\n", True),
        (columns, "src/a/b.c", "x" * 100 + "\n", False),
        (tabs_and_blanks, "src/a/b.c", "\tx;\n", True),
        (tabs_and_blanks, "src/a/b.c", "x; \n", True),
        (tabs_and_blanks, "src/a/b.c", "x;", True),
        (tabs_and_blanks, "Makefile", "all:\n\techo\n", False),
        (banned, "src/a/b.c", "p = malloc(3);\n", True),
        (banned, "src/a/b.c", "free (p);\n", True),
        (banned, "src/base/mem.c", "p = malloc(3); free(p);\n", False),
        (banned, "src/a/b.c", "kk_free(p); t->free(p); json_free(p);\n", False),
        (banned, "src/a/b.c", "/* malloc(3) */ s = \"strcpy(a, b)\";\n", False),
        (banned, "src/a/b.c", "snprintf(a, 3, b); strtok_r(a, b, c); fprintf(stderr, a);\n", False),
        (banned, "src/a/b.c", "getenv(\"X\");\n", True),
        (banned, "src/base/config.c", "getenv(\"X\");\n", False),
        (banned, "src/a/b.c", "printf(\"x\");\n", True),
        (banned, "src/cli/b.c", "printf(\"x\");\n", False),
        (foreign, "docs/x.md", "see " + MACHINE[0] + "x\n", True),
        (foreign, "docs/x.md", "from " + REGISTRY[0] + "\n", True),
        (foreign, "docs/x.md", "see docs/adr\n", False),
        (guards, "src/a/b.h", guard % "int x;\n", False),
        (guards, "src/a/b.h", guard.replace("A_B", "A_C") % "", True),
        (guards, "src/a/b.h", "int x;\n", True),
        (guards, "tests/unit/a/b.h", guard % "", False),
        (guards, "tests/unit/a/b.h", guard.replace("KK_", "X_") % "", True),
    ] + [(banned, "src/a/b.c", f"x = {name}(y);\n", True) for name in NEVER]
    wrong = [f"case {i}: {rule.__name__} on {text[:40]!r}"
             for i, (rule, path, text, bad) in enumerate(cases)
             if bool(list(rule([File(path, text)]))) != bad]
    return say(f"{len(cases)} cases", wrong)


def main():
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if "--self-test" in sys.argv:
        return 0 if self_test() else 1
    files = list(read_tree())
    warnings(files)
    good = [say(name, list(rule(files))) for name, rule in RULES]
    good.append(check_format(files))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

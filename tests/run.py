#!/usr/bin/env python3
"""Runs the tests and adds up what they say.

    tests/run.py [--config release] [WORD...]   the programs of one configuration whose path has a WORD
    tests/run.py --lint                         style and layer checks
    tests/run.py --check                        lint, then every configuration, built first, and the
                                                fuzz targets for some seconds each

Three kinds of test. A cmocka program (tests/unit) is counted from its own report. A shell test
(tests/cli/*.sh) and a checker print lines "ok - what", "ok - what # skip why" or "not ok - what".
Exit status 77 means skipped. What a test prints is shown when it fails. The last line is always
"N passed, N failed, N skipped"; the exit status is 0 only if nothing failed and something passed.
"""
import argparse
import concurrent.futures
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

JOBS = 2
TIMEOUT_S = 300
CHECKERS = ["tools/check_style.py", "tools/check_layers.py"]
CONFIGS = ["release", "asan", "tsan"]
NO_CLI = {"tsan"}  # thread tests alone


class Count:
    def __init__(self, passed=0, failed=0, skipped=0):
        self.passed, self.failed, self.skipped = passed, failed, skipped

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def count_cmocka(text):
    """From the closing lines of each group; from the lines of single tests if it died before them."""
    if re.search(r"^\[==========\].* run\.$", text, re.M):
        total = lambda word: sum(int(n) for n in re.findall(rf"^\[ +{word} +\] (\d+) test", text, re.M))
        return Count(total("PASSED"), total("FAILED"), total("SKIPPED"))
    single = lambda word: len(re.findall(rf"^\[ +{word} +\] ", text, re.M))
    return Count(single("OK"), single("FAILED"), single("SKIPPED"))


def count_lines(text):
    n = Count()
    for line in text.splitlines():
        if line.startswith("not ok"):
            n.failed += 1
        elif re.match(r"ok\b.*# ?skip", line, re.I):
            n.skipped += 1
        elif re.match(r"ok\b", line):
            n.passed += 1
    return n


def run_one(name, argv, config, count):
    """Run one test from the repository root; returns (name, Count, seconds, output, note)."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("KAKEYA_", "MAKE", "MFLAGS"))}
    env.update(KK_CONFIG=config, KK_BIN=os.path.abspath(f"build/{config}/kakeya"),
               UBSAN_OPTIONS="print_stacktrace=1", TSAN_OPTIONS="halt_on_error=1 suppressions=tests/tsan.supp", LC_ALL="C.UTF-8")
    start = time.time()
    note = ""
    with tempfile.TemporaryDirectory(prefix="kk-test-") as scratch:
        env["KK_TMP"] = scratch
        try:
            p = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, timeout=TIMEOUT_S)
            rc, out = p.returncode, p.stdout
        except subprocess.TimeoutExpired as e:
            rc, out, note = -1, e.stdout or b"", f"still running after {TIMEOUT_S} s"
        except OSError as e:
            rc, out, note = -1, b"", str(e)
    text = out.decode("utf-8", "replace")
    n = count(text)
    if rc == 77:
        n.skipped += 1
    elif rc != 0 and n.failed == 0:
        n.failed += 1
        note = note or (f"killed by signal {-rc}" if rc < 0 else f"exit status {rc}")
    elif n.passed + n.failed + n.skipped == 0:
        n.failed, note = 1, "ran no test"
    return name, n, time.time() - start, text, note


def report(result, total):
    name, n, seconds, text, note = result
    total.add(n)
    print(f"  {'FAIL' if n.failed else 'ok  '} {name:<44} {n}  {seconds:.1f} s {note}".rstrip())
    if n.failed:
        print("    | " + "\n    | ".join(text.rstrip().splitlines()[-200:]))
    elif n.skipped:
        for line in text.splitlines():
            if "skip" in line.lower() and line.startswith(("ok", "skip")):
                print("    | " + line)
    sys.stdout.flush()


def run_config(config, words, total):
    """Every test of one configuration, JOBS at a time, reported in the order they end."""
    wanted = lambda path: not words or any(w in path for w in words)
    jobs = []
    for source in sorted(glob.glob("tests/unit/**/test_*.c", recursive=True)):
        program = f"build/{config}/{source[:-2]}"
        if config == "tsan" and "kk-test: tsan" not in open(source, encoding="utf-8").read():
            continue
        if wanted(source):
            jobs.append((source[len("tests/"):-2], [program], config, count_cmocka))
    if config not in NO_CLI:
        for script in filter(wanted, sorted(glob.glob("tests/cli/*.sh"))):
            jobs.append((script[len("tests/"):], ["bash", script], config, count_lines))
    print(f"{config}: {len(jobs)} programs")
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        for done in concurrent.futures.as_completed([pool.submit(run_one, *j) for j in jobs]):
            report(done.result(), total)


def run_fuzz(total):
    """The seeds of every fuzz target, and a fixed number of runs from them."""
    names = sorted(os.path.basename(p) for p in glob.glob("tests/fuzz/corpus/*"))
    print(f"fuzz: {len(names)} targets")
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        jobs = [pool.submit(run_one, "fuzz/" + n, ["tests/fuzz/run.py", "--short", n], "fuzz", count_lines)
                for n in names]
        for done in concurrent.futures.as_completed(jobs):
            report(done.result(), total)


def run_lint(total):
    print("lint:")
    for checker in CHECKERS:
        report(run_one(checker, [sys.executable, checker], "release", count_lines), total)
        selftest = [sys.executable, checker, "--self-test"]
        report(run_one(checker + " --self-test", selftest, "release", count_lines), total)


def make(what, args):
    """Run make; False if it failed."""
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    start = time.time()
    p = subprocess.run([os.environ.get("MAKE", "make"), "--no-print-directory", f"-j{os.cpu_count()}",
                        "-s", "DEBUG="] + args, env=env)
    print(f"{what}: {'ok' if p.returncode == 0 else 'FAILED'}, {time.time() - start:.1f} s")
    sys.stdout.flush()
    return p.returncode == 0


def build(config):
    """Build one configuration with its tests; False if that failed."""
    sanitizer = "" if config == "release" else config
    targets = {"release": ["all", "tests"], "fuzz": ["fuzzers"]}.get(config, ["tests"])
    return make(f"build {config}", [f"SAN={sanitizer}", "CUDA="] + targets)


def compile_cuda(total):
    """src/dev/cuda, where there is a compiler for it. What needs a GPU: tests/cuda/run.sh."""
    if not (shutil.which("nvcc") or os.path.exists("/usr/local/cuda/bin/nvcc")):
        print("cuda compiles: skipped: no nvcc on this machine")
        total.add(Count(skipped=1))
        return
    ok = make("cuda compiles", ["SAN=", "CUDA=1", "cuda-objects"])
    total.add(Count(passed=1) if ok else Count(failed=1))


def run_check(total):
    run_lint(total)
    compile_cuda(total)
    for config in CONFIGS:
        ok = build(config)
        total.add(Count(passed=1) if ok else Count(failed=1))
        if ok:
            run_config(config, [], total)
    ok = build("fuzz")
    total.add(Count(passed=1) if ok else Count(failed=1))
    if ok:
        run_fuzz(total)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="release")
    parser.add_argument("--lint", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    total = Count()
    start = time.time()
    if args.check:
        run_check(total)
    elif args.lint:
        run_lint(total)
    else:
        run_config(args.config, args.words, total)
    print(f"{time.time() - start:.0f} s")
    print(total)
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())

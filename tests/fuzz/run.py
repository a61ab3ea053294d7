#!/usr/bin/env python3
"""Runs the fuzz targets of build/fuzz (`make fuzz` builds them).

    tests/fuzz/run.py [--seconds 600] [NAME...]    each target for a time, from its seeds and from
                                                   what earlier runs found (build/fuzz/corpus)
    tests/fuzz/run.py --short NAME                 the seeds, then a fixed number of runs with a
                                                   fixed seed; prints "ok - .." or "not ok - .."

An input that breaks something is kept in build/fuzz/found/NAME and is shown; give its path to
build/fuzz/tests/fuzz/fuzz_NAME to see it again.
"""
import argparse
import glob
import os
import re
import subprocess
import sys
import tempfile

# Where a target's words are, and the runs of --short: some seconds.
TARGETS = {
    "safetensors": (["src/file/*.c"], 8000),
    "gguf": (["src/file/gguf*.c", "src/tok/from_vocab.c"], 12000),
    "config": (["src/model/config.c", "src/model/load.c"], 1500),
    "tokenizer": (["src/tok/*.c"], 4000),
    "text": ([], 3000),
    "drafter": (["src/model/dflash.c"], 250),
    "f_theta": (["src/model/f_theta.c"], 1500),
}
HERE = os.path.dirname(os.path.abspath(__file__))
LIMITS = ["-timeout=25", "-rss_limit_mb=3000", "-malloc_limit_mb=2000", "-print_final_stats=1"]


def dictionary(name, path):
    """json.dict, and every short string literal of the sources: keys, types, names."""
    words = set()
    for pattern in TARGETS[name][0]:
        for source in glob.glob(pattern):
            with open(source, encoding="utf-8") as f:
                words.update(re.findall(r'(?<!include )"((?:[A-Za-z0-9_.<>]){2,40})"', f.read()))
    with open(os.path.join(HERE, "json.dict"), encoding="utf-8") as f, open(path, "w") as out:
        out.write(f.read())
        for w in sorted(words):
            out.write(f'"{w}"\n"\\"{w}\\":"\n')


def run(name, extra, grown=None):
    found = f"build/fuzz/found/{name}"
    os.makedirs(found, exist_ok=True)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a file a run, many runs a second
    with tempfile.TemporaryDirectory(prefix="kk-fuzz-", dir=memory) as scratch:
        words, kept = os.path.join(scratch, "dict"), os.path.join(scratch, "kept")
        os.mkdir(kept)
        dictionary(name, words)
        env = dict(os.environ, TMPDIR=scratch, UBSAN_OPTIONS="print_stacktrace=1",
                   ASAN_OPTIONS="allocator_may_return_null=1:max_allocation_size_mb=1500")
        command = [f"build/fuzz/tests/fuzz/fuzz_{name}", f"-dict={words}", f"-artifact_prefix={found}/",
                   *LIMITS, *extra, grown or kept, f"{HERE}/corpus/{name}"]
        return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)


def short(name):
    seeds = f"{HERE}/corpus/{name}"
    p = run(name, [f"-runs={TARGETS[name][1]}", "-seed=1", "-len_control=0"])
    text = p.stdout.decode("utf-8", "replace")
    if p.returncode:
        print(text[-6000:])
    print(f"{'not ok' if p.returncode else 'ok'} - {name}: {len(os.listdir(seeds))} seeds, "
          f"{TARGETS[name][1]} runs")
    return p.returncode == 0


def long(name, seconds):
    grown = f"build/fuzz/corpus/{name}"
    os.makedirs(grown, exist_ok=True)
    p = run(name, [f"-max_total_time={seconds}"], grown)
    text = p.stdout.decode("utf-8", "replace")
    runs = re.search(r"stat::number_of_executed_units: (\d+)", text)
    last = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
    print(f"{name:<12} {'FOUND' if p.returncode else 'ok'}  {runs.group(1) if runs else '?'} runs, "
          f"cov {last[-1][0] if last else '?'}, {len(os.listdir(grown))} inputs kept", flush=True)
    if p.returncode:
        print(text[-6000:])
    return p.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME")
    a = parser.parse_args()
    unknown = [n for n in a.names if n not in TARGETS]
    if unknown:
        print(f"no fuzz target '{unknown[0]}' (known: {', '.join(TARGETS)})", file=sys.stderr)
        return 2
    os.chdir(os.path.join(HERE, "..", ".."))
    one = short if a.short else lambda n: long(n, a.seconds)
    return 0 if all([one(n) for n in a.names or TARGETS]) else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Trains the embedded model: a verifier, its f_theta and its drafter. README.md beside this file says how and why.

    tools/train/train.py STAGE.. [--out DIR] [--from DIR] [--seconds N] [--smoke]

Stages: data, verifier, settle, ftheta, drafter, export, eval; `all` is all of them in this order. Each reads what the ones
before it left in --from (default: --out) and writes to --out, so a stage can be run again alone.
"""
import argparse
import importlib
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
STAGES = ("data", "verifier", "settle", "ftheta", "drafter", "export", "eval")


def options():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="stages: " + ", ".join(STAGES) + ", all")
    p.add_argument("stage", nargs="+", choices=STAGES + ("all",), metavar="STAGE")
    p.add_argument("--root", default=os.path.dirname(os.path.dirname(HERE)), help="the repository: the benches' words are read from its src/cli")
    p.add_argument("--out", default="build/train", help="where files go (default build/train)")
    p.add_argument("--from", dest="source", help="where files of earlier stages are (default: --out)")
    p.add_argument("--model", help="stages export and eval: the directory of the trio (default OUT/model)")
    p.add_argument("--library", help="a Python standard library (default: that of the Python which runs this)")
    p.add_argument("--tokenizer", help="a tokenizer.json to keep, or `new` to train one (default: that of models/tiny)")
    p.add_argument("--engine", help="stage eval: the program (default build/kakeya)")
    p.add_argument("--seconds", type=float, default=0, help="training time of a stage, in place of its own")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, help="processes that draw text (default: cores less 2)")
    p.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    p.add_argument("--smoke", action="store_true", help="a net of a few thousand parameters for a few seconds: tests the recipe")
    return p.parse_args()


def main():
    o = options()
    try:
        import torch
        import safetensors  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as e:
        raise SystemExit(f"tools/train needs PyTorch, safetensors and tokenizers: {e}")
    o.source = o.source or o.out
    o.tokenizer = o.tokenizer or os.path.join(o.root, "models/tiny/tokenizer.json")
    o.engine = o.engine or os.path.join(o.root, "build/kakeya")
    o.model = o.model or os.path.join(o.out, "model")
    o.device = o.device or ("cuda" if torch.cuda.is_available() else "cpu")
    o.workers = o.workers or (1 if o.smoke else max(1, (os.cpu_count() or 2) - 2))
    from common import Setup
    setup = Setup(o)
    for stage in STAGES if "all" in o.stage else o.stage:
        setup.log("stage", stage)
        importlib.import_module({"eval": "measure"}.get(stage, stage)).run(setup)


if __name__ == "__main__":
    main()

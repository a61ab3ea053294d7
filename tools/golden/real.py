#!/usr/bin/env python3
"""Logits of a real GGUF model: kakeya against transformers over the same dequantised weights, in float32.

    tools/golden/real.py MODEL.gguf [--tokens 256] [--kakeya build/kakeya] [--dir DIR] [--json FILE] [--write FILE]

transformers reads the GGUF, takes its blocks apart and writes a Hugging Face directory in float32 (kept with --dir).
kakeya runs that directory, and the GGUF itself with activations in float32 and in 8 bits. Every arm is compared with
the class at every position: the largest difference relative to the row's largest logit, and the argmax. The text is
English prose of this repository. Fails (exit 1) if one of the float32 arms differs by more than 1e-4 or in one argmax,
or in one bit from the other.

Then both go on with tests/golden/real/prompt.txt greedily, by 64 tokens, which must be the same; --write keeps those of
transformers as a golden of tests/cli/test_real.sh. Needs the packages accelerate and gguf (transformers reads no GGUF
without them).
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROMPT = os.path.join(ROOT, "tests/golden/real/prompt.txt")
LIMIT = 1e-4
GREEDY = 64
ARMS = (("directory", []), ("gguf_f32", ["--act", "f32"]), ("gguf_q8", ["--act", "q8"]))


def text_ids(folder, name, n):
    text = "".join(open(os.path.join(ROOT, f), encoding="utf-8").read() for f in ("CONTRIBUTING.md", "docs/ARCHITECTURE.md"))
    ids = AutoTokenizer.from_pretrained(folder, gguf_file=name)(text)["input_ids"]
    return ids[:n]


def greedy(model, ids):
    """Ids of GREEDY tokens, and how near the second choice ever came, relative to the row's largest logit."""
    made, margin, past, fed = [], float("inf"), None, ids
    with torch.no_grad():
        for _ in range(GREEDY):
            out = model(input_ids=torch.tensor([fed]), past_key_values=past, use_cache=True)
            row, past = out.logits[0, -1].float(), out.past_key_values
            best = torch.topk(row, 2).values
            margin = min(margin, float((best[0] - best[1]) / row.abs().max()))
            fed = [int(row.argmax())]
            made += fed
    return made, margin


def kakeya_greedy(program, model):
    command = [program, "run", "-m", model, "-f", PROMPT, "-n", str(GREEDY), "--ignore-eos", "--act", "f32", "--kv-type", "f32",
               "--ids"]
    return [int(i) for i in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def kakeya(program, model, ids_file, out, *options):
    command = [program, "logits", "-m", model, "--ids", ids_file, "-o", out, "--kv-type", "f32", *options]
    r = subprocess.run(command, capture_output=True, text=True)
    if r.returncode:
        return None, r.stderr.strip().splitlines()[-1]
    return np.load(out), None


def save(model, directory):
    """config.json and model.safetensors. save_pretrained refuses what was read from a GGUF."""
    os.makedirs(directory, exist_ok=True)
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config.update(architectures=[type(model).__name__], dtype="float32")
    json.dump(config, open(os.path.join(directory, "config.json"), "w"), indent=1)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()
               if k != "lm_head.weight" or not config["tie_word_embeddings"]}
    save_file(tensors, os.path.join(directory, "model.safetensors"))


def compare(got, want):
    scale = np.abs(want).max(axis=1)
    worst = np.abs(got - want).max(axis=1) / scale
    return {"largest_difference": float(worst.max()), "median_difference": float(np.median(worst)),
            "other_argmax": int((got.argmax(1) != want.argmax(1)).sum())}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("gguf")
    p.add_argument("--tokens", type=int, default=256)
    p.add_argument("--kakeya", default=os.path.join(ROOT, "build/kakeya"))
    p.add_argument("--dir")
    p.add_argument("--json")
    p.add_argument("--write")
    a = p.parse_args()
    folder, name = os.path.split(os.path.abspath(a.gguf))
    with tempfile.TemporaryDirectory() as tmp:
        directory = a.dir or os.path.join(tmp, "model")
        ids = text_ids(folder, name, a.tokens)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32,
                                                     attn_implementation="eager").eval()
        with torch.no_grad():
            want = model(input_ids=torch.tensor([ids])).logits[0].float().numpy()
        prompt = AutoTokenizer.from_pretrained(folder, gguf_file=name)(open(PROMPT, encoding="utf-8").read())["input_ids"]
        made, margin = greedy(model, prompt)
        save(model, directory)
        report = {"model": name, "class": type(model).__name__, "tokens": len(ids), "torch": torch.__version__,
                  "transformers": transformers.__version__}
        del model
        ids_file, out, bad = os.path.join(tmp, "ids.json"), os.path.join(tmp, "logits.npy"), 0
        json.dump(ids, open(ids_file, "w"))
        exact = None
        for arm, options in ARMS:
            got, why = kakeya(a.kakeya, directory if arm == "directory" else a.gguf, ids_file, out, *options)
            if got is None:
                report[arm], bad = {"not run": why}, 1
                continue
            report[arm] = compare(got, want)
            if arm == "gguf_q8":
                continue
            bad |= report[arm]["largest_difference"] > LIMIT or report[arm]["other_argmax"] > 0
            if exact is not None:
                report[arm]["bits_of_directory"] = bool(np.array_equal(got.view(np.uint32), exact.view(np.uint32)))
                bad |= not report[arm]["bits_of_directory"]
            exact = got
        same = kakeya_greedy(a.kakeya, a.gguf) == made
        report["greedy"] = {"tokens": GREEDY, "smallest_margin": margin, "same": same}
        bad |= not same
    if a.write:
        golden = {"model": name, "prompt_tokens": len(prompt), "smallest_margin": margin, "ids": made,
                  "torch": torch.__version__, "transformers": transformers.__version__}
        open(a.write, "w").write(json.dumps(golden) + "\n")
    text = json.dumps(report, indent=1)
    print(text)
    if a.json:
        open(a.json, "w").write(text + "\n")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())

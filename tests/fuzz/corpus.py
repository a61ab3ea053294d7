#!/usr/bin/env python3
"""Writes tests/fuzz/corpus from the repository's own files. The seeds are committed; run this again
when a format changes. Everything is small: a fuzzer grows its own."""
import glob
import json
import os
import struct

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
OUT = "tests/fuzz/corpus"


def put(target, name, data):
    os.makedirs(f"{OUT}/{target}", exist_ok=True)
    with open(f"{OUT}/{target}/{name}", "wb") as f:
        f.write(data)


def compact(v):
    return json.dumps(v, separators=(",", ":"), ensure_ascii=False).encode()


def load(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def safetensors():
    ok = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
          "b.c": {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]},
          "d": {"dtype": "I64", "shape": [], "data_offsets": [34, 42]},
          "e": {"dtype": "F16", "shape": [0, 4], "data_offsets": [42, 42]},
          "__metadata__": {"format": "pt"}}
    head = compact(ok)
    put("safetensors", "parts", b"p" + struct.pack(">H", 42) + head)
    put("safetensors", "padded", b"p" + struct.pack(">H", 42) + head + b"   ")
    put("safetensors", "whole", b"r" + struct.pack("<Q", len(head)) + head + bytes(42))
    put("safetensors", "empty", b"r" + struct.pack("<Q", 2) + b"{}")
    odd = {"x": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
           "y": {"dtype": "F32", "shape": [1, 1, 1, 2], "data_offsets": [3, 11]},
           "z": {"dtype": "F4", "shape": [4], "data_offsets": [11, 13]}}
    put("safetensors", "misaligned", b"p" + struct.pack(">H", 13) + compact(odd))
    put("safetensors", "index", b"i" + compact({"metadata": {"total_size": 40}, "weight_map": {
        "x": "a.safetensors", "y": "b.safetensors", "z": "b.safetensors"}}))


def config():
    for i, path in enumerate(sorted(glob.glob("tests/golden/gemma4/*/config.json"))):
        put("config", path.split("/")[-2], bytes([i]) + compact(load(path)))
    big = load("bench/configs/gemma-4-26b-a4b.json")
    put("config", "26b", b"\0" + compact(big))
    put("config", "nested", b"\2" + compact({"architectures": ["Gemma4ForConditionalGeneration"],
                                              "text_config": load("tests/data/mini.json")}))
    put("config", "capped", b"\x80" + compact(load("tests/data/mini.json")))
    put("config", "exact", b"\4" + compact(load("tests/data/mini.json")))


def small_tokenizer(path, merges=12):
    """The first merges, and no token that only later merges make."""
    t = load(path)
    kept = t["model"]["merges"][:merges]
    sides = [m if isinstance(m, list) else m.split(" ") for m in kept]
    made = {"".join(s) for s in sides} | {x for s in sides for x in s}
    vocab = t["model"]["vocab"]
    short = sorted((k for k in vocab if len(k) == 1), key=vocab.get)[:70]
    fallback = [k for k in vocab if k.startswith("<0x")][:24]
    special = [k for k in (t["model"].get("unk_token"),) if k]
    words = [k for k in vocab if k in made or k in short or k in fallback or k in special]
    t["model"]["vocab"] = {k: i for i, k in enumerate(words)}
    t["model"]["merges"] = kept
    t["added_tokens"] = t.get("added_tokens", [])[:6]
    for i, a in enumerate(t["added_tokens"]):
        a["id"] = t["model"]["vocab"].get(a["content"], len(words) + i)
    return t


def tokenizer():
    texts = ["def f(x):\n  return 12345", "Grüße, 日本 <bos>a</s>  b", "don't\t\U0001f600\U0001f468"]
    for i, name in enumerate(["gemma", "gpt2", "llama2", "llama3", "meta", "odd", "qwen"]):
        t = small_tokenizer(f"tests/golden/tokenizer/{name}.json")
        put("tokenizer", name, compact(t) + b"\0" + texts[i % 3].encode())


def text():
    for i, t in enumerate(["def f(x):\n\n    return x", "it's 1234567 <bos> <|endoftext|>",
                           "Grüße 日本語 \u0301e", "a\u00a0\u2028\u3000b \U0001f600\U0001f3fd",
                           "\u2581 \u2581\u2581x", "<0x41><0xE2>", "\r\n\t  ", "ﬁ Å ① ½"]):
        put("text", f"t{i}", bytes([i]) + t.encode())
    put("text", "broken", b"\0a\xe2\x82 \xff\xc0\xaf\xed\xa0\x80\xf0\x9f\x98")


def drafter():
    for i, path in enumerate(sorted(glob.glob("tests/golden/dflash/*/config.json"))):
        c = load(path)
        c.update(hidden_size=48, num_target_layers=4, intermediate_size=32)
        nested = c.get("dflash_config", c)
        if "target_layer_ids" in nested:
            nested["target_layer_ids"] = nested["target_layer_ids"][:1] and [1, 2]
        if "mask_token_id" in nested:
            nested["mask_token_id"] = 4
        put("drafter", path.split("/")[-2], bytes([i]) + compact(c))
    put("drafter", "capped", b"\x86" + compact(c))


def f_theta():
    good = {"format": "kakeya-f-theta-1", "capture": "aux", "aux_layer_ids": [1, 2], "rank": 8,
            "aux_norm_eps": 1e-6, "predicts": "raw_projection", "hidden_size": 48}
    put("f_theta", "good", compact(good))
    put("f_theta", "shape", compact({**good, "rank": 256, "aux_layer_ids": [0, 1, 2, 3]}))
    put("f_theta", "old", compact({**good, "format": "kakeya-f-theta-0", "capture": "hidden"}))


for make in (safetensors, config, tokenizer, text, drafter, f_theta):
    make()

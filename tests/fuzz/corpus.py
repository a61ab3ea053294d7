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


def gguf_text(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def gguf_value(v):
    """Its type, packed, and itself. A list holds values of one type."""
    if isinstance(v, bool):
        return 7, struct.pack("<B", v)
    if isinstance(v, int):
        return 4, struct.pack("<I", v)
    if isinstance(v, float):
        return 6, struct.pack("<f", v)
    if isinstance(v, str):
        return 8, gguf_text(v)
    types = {gguf_value(x)[0] for x in v}
    kind = 5 if types == {4} else types.pop()  # token types are signed
    return 9, struct.pack("<IQ", kind, len(v)) + b"".join(gguf_value(x)[1] for x in v)


def gguf(keys, tensors):
    """tensors: (name, type, sizes fastest first, bytes)."""
    head, data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)), b""
    for k, v in keys.items():
        kind, packed = gguf_value(v)
        head += gguf_text(k) + struct.pack("<I", kind) + packed
    for name, kind, sizes, n in tensors:
        head += gguf_text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, len(data))
        data += bytes(i % 251 for i in range(n)) + bytes(-n % 32)
    return head + bytes(-len(head) % 32) + data


def gguf_files():
    def sizes(arch):
        return {"general.architecture": arch, f"{arch}.block_count": 1, f"{arch}.context_length": 64, f"{arch}.embedding_length": 32,
                f"{arch}.feed_forward_length": 32, f"{arch}.attention.head_count": 2, f"{arch}.attention.head_count_kv": 1,
                f"{arch}.attention.layer_norm_rms_epsilon": 1e-5, f"{arch}.attention.key_length": 16}
    embed, q = ("token_embd.weight", 2, [32, 8], 8 * 18), ("blk.0.attn_q.weight", 8, [32, 32], 32 * 34)
    norm = ("output_norm.weight", 0, [32], 128)
    scores = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<bos>", "t", "h", "th", "<0x0A>", "  ", "\u2581th"],
              "tokenizer.ggml.scores": [0.0, 0.0, -9.0, -9.0, -1.0, 0.0, 0.0, -2.0], "tokenizer.ggml.token_type": [2, 3, 1, 1, 1, 6, 4, 1],
              "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_space_prefix": True}
    merges = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": ["<|im_start|>", "<|im_end|>", "t", "h", "th"],
              "tokenizer.ggml.merges": ["t h"], "tokenizer.ggml.token_type": [3, 3, 1, 1, 1],
              "tokenizer.chat_template": "{{'<|im_start|>assistant\n'}}<|im_end|>"}
    put("gguf", "llama", gguf({**sizes("llama"), **scores}, [embed, q, norm]))
    put("gguf", "qwen3", gguf({**sizes("qwen3"), **merges}, [embed, q, norm]))
    put("gguf", "llama3", gguf({**sizes("llama"), "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
                               [embed, ("rope_freqs.weight", 0, [8], 32)]))
    put("gguf", "gemma3", gguf({**sizes("gemma3"), "gemma3.attention.sliding_window": 16, **scores}, [embed, norm]))
    put("gguf", "gemma4", gguf({**sizes("gemma4"), "gemma4.attention.sliding_window": 16, "gemma4.attention.sliding_window_pattern": [False],
                                "gemma4.expert_count": 2, "gemma4.expert_used_count": 1, "gemma4.expert_feed_forward_length": 8},
                               [embed, ("blk.0.ffn_gate_up_exps.weight", 30, [32, 16, 2], 2048)]))
    put("gguf", "split", gguf({**sizes("llama"), "split.count": 1, "split.no": 0, "split.tensors.count": 1}, [embed]))
    blocks = [(f"b{k}", k, [32, 2], 2 * n) for k, n in ((2, 18), (3, 20), (6, 22), (7, 24), (8, 34))] + [(f"b{k}", k, [256], n) for k, n in ((12, 144), (13, 176), (14, 210))]
    put("gguf", "blocks", gguf(sizes("llama"), [embed, *blocks]))


for make in (safetensors, gguf_files, config, tokenizer, text, drafter, f_theta):
    make()

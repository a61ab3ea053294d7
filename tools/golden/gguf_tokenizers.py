#!/usr/bin/env python3
"""Tokenizers in GGUF files, for tests/unit/tok/test_gguf.c.

    tools/golden/gguf_tokenizers.py GGUF_PY [DIR_OF_REAL_MODELS]

GGUF_PY: the folder of the Python package `gguf` (llama.cpp's gguf-py). Writes tests/golden/gguf/tokenizers/:
    NAME.gguf     a small vocabulary: keys, and an embedding of nothing
    NAME.jsonl    line k: what text k of tests/golden/tokenizer/cases.jsonl becomes: {"c": how many ids, "h": FNV-1a 64 of
                  them as little-endian words}, with special tokens found; a second pair "pc", "ph" as plain text where it differs
    made_by.json  versions
Small ones: spm_gemma, spm_llama (sentencepiece models trained here; the oracle is sentencepiece), gpt2, smollm, llama-bpe, qwen2
(trained by tools/golden/tokenizer.py or here; the oracle is Hugging Face `tokenizers`), gemma4 (its oracle is gemma.jsonl there).
Real ones, ids alone: gemma-3-270m.jsonl (sentencepiece, from the GGUF's pieces and scores) and smollm2-135m.jsonl (`tokenizers`,
from the GGUF's merges, in the pipeline of the published tokenizer.json).
"""
import importlib.metadata
import io
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/golden/gguf/tokenizers"
sys.path[:0] = [sys.argv[1], str(ROOT / "tools/golden")]

import numpy as np  # noqa: E402
import sentencepiece as spm  # noqa: E402
from sentencepiece import sentencepiece_model_pb2 as pb  # noqa: E402
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

import gguf  # noqa: E402
import tokenizer as hf  # noqa: E402

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
CASES = [(t if isinstance(t, str) else t.decode("utf-8", "replace")) * n for t, n in hf.texts()]


# ---- oracles: text -> ids, special tokens found or not

class SentencePiece:
    """sentencepiece never finds control tokens in a text: they are cut out before, the longest first."""

    def __init__(self, proto, control):
        self.sp = spm.SentencePieceProcessor(model_proto=proto)
        self.control = control  # text -> id

    def encode(self, text, special):
        out, at = [], 0
        starts = {c[0] for c in self.control}
        i = 0
        while special and i < len(text):
            found = max((c for c in self.control if text.startswith(c, i)), key=len, default=None) if text[i] in starts else None
            if found:
                out += self.piece(text[at:i]) + [self.control[found]]
                i = at = i + len(found)
            else:
                i += 1
        return out + self.piece(text[at:])

    def piece(self, text):
        return self.sp.encode(text) if text else []


class HuggingFace:
    def __init__(self, tok):
        self.tok = tok

    def encode(self, text, special):
        self.tok.encode_special_tokens = not special
        return self.tok.encode(text, add_special_tokens=False).ids


def golden(name, oracle):
    rows = []
    for text in CASES:
        ids, plain = oracle.encode(text, True), oracle.encode(text, False)
        rows.append({"c": len(ids), "h": hf.fnv(ids), **({"pc": len(plain), "ph": hf.fnv(plain)} if plain != ids else {})})
    hf.dump(OUT / f"{name}.jsonl", rows)


# ---- small vocabularies

def write(name, model, tokens, types, scores=None, merges=None, pre=None, keys=()):
    w = gguf.GGUFWriter(OUT / f"{name}.gguf", "llama")
    w.add_block_count(1)
    w.add_context_length(1024)
    w.add_embedding_length(32)
    w.add_feed_forward_length(32)
    w.add_head_count(1)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model(model)
    if pre:
        w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    if scores is not None:
        w.add_token_scores(scores)
    w.add_token_types(types)
    if merges is not None:
        w.add_token_merges(merges)
    for key, value in keys:
        (w.add_bool if isinstance(value, bool) else w.add_uint32 if isinstance(value, int) else w.add_string)(key, value)
    w.add_tensor("token_embd.weight", np.zeros((len(tokens), 18), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def train_spm(size, prefix, user, control):
    """A sentencepiece BPE model with byte fallback; its pieces as a converter writes them."""
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(x for line in hf.corpus() for x in line.split("\n") if x), model_writer=out, model_type="bpe", vocab_size=size,
        character_coverage=0.98, byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=prefix, remove_extra_whitespaces=False,
        user_defined_symbols=user, control_symbols=control, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", num_threads=1, minloglevel=2)
    proto = out.getvalue()
    m = pb.ModelProto.FromString(proto)
    kind = {1: NORMAL, 2: UNKNOWN, 3: CONTROL, 4: USER, 5: UNUSED, 6: BYTE}
    types = [kind[p.type] for p in m.pieces]
    tokens = [p.piece.replace("▁", " ") if t == USER else p.piece for p, t in zip(m.pieces, types)]
    return proto, tokens, types, [p.score for p in m.pieces]


def small_spm():
    user = ["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<a", "[WORD]"]
    for name, prefix, users, size in [("spm_gemma", False, user, 900), ("spm_llama", True, ["▁▁", "word"], 700)]:
        proto, tokens, types, scores = train_spm(size, prefix, users, ["<start_of_turn>", "<end_of_turn>", "<s>"])
        write(name, "llama", tokens, types, scores, keys=[("tokenizer.ggml.unknown_token_id", 3), ("tokenizer.ggml.bos_token_id", 2), ("tokenizer.ggml.eos_token_id", 1),
                                                          ("tokenizer.ggml.add_space_prefix", prefix)])
        golden(name, SentencePiece(proto, {t: i for i, (t, k) in enumerate(zip(tokens, types)) if k in (CONTROL, UNKNOWN)}))


def tables(tok, user=()):
    """Tokens, types and merges of a Hugging Face BPE tokenizer."""
    j = json.loads(tok.to_str())
    added = {a["id"]: (a["content"], CONTROL if a["special"] else USER) for a in j["added_tokens"]}
    vocab = {i: t for t, i in j["model"]["vocab"].items()}
    n = max([*added, *vocab]) + 1
    tokens = [added[i][0] if i in added else vocab.get(i, f"[PAD{i}]") for i in range(n)]
    types = [added[i][1] if i in added else (BYTE if vocab[i] in hf.BYTES else NORMAL) if i in vocab else UNUSED for i in range(n)]
    return tokens, types, [" ".join(m) if isinstance(m, list) else m for m in j["model"]["merges"]]


def small_hf():
    for name, file in [("llama-bpe", "llama3"), ("qwen2", "qwen")]:
        tok = Tokenizer.from_file(str(ROOT / f"tests/golden/tokenizer/{file}.json"))
        tokens, types, merges = tables(tok)
        write(name, "gpt2", tokens, types, merges=merges, pre=name)
        golden(name, HuggingFace(tok))
    for name, pre in [("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False)),
                      ("smollm", pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]))]:
        tok = Tokenizer(models.BPE())
        tok.pre_tokenizer = pre
        tok.decoder = decoders.ByteLevel()
        hf.train(tok, 600, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet())
        tok.add_tokens([AddedToken("[WORD]", special=False, normalized=False), AddedToken("a b", special=False, normalized=False)])
        tokens, types, merges = tables(tok)
        write(name, "gpt2", tokens, types, merges=merges, pre=name)
        golden(name, HuggingFace(tok))
    tok = Tokenizer.from_file(str(ROOT / "tests/golden/tokenizer/gemma.json"))
    tokens, types, merges = tables(tok)
    write("gemma4", "gemma4", tokens, types, merges=merges, keys=[("tokenizer.ggml.unknown_token_id", tokens.index("<unk>"))])
    golden("gemma4", HuggingFace(tok))


# ---- real vocabularies

def fields(path):
    f = gguf.GGUFReader(path).fields
    return lambda key: f[key].contents() if key in f else None


def real_gemma(path):
    get = fields(path)
    m = pb.ModelProto()
    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    unk = get("tokenizer.ggml.unknown_token_id")
    for i, (t, s, k) in enumerate(zip(tokens, get("tokenizer.ggml.scores"), types)):
        k = UNKNOWN if i == unk else k
        m.pieces.add(piece=t.replace(" ", "▁") if k == USER else t, score=s, type=k)
    m.trainer_spec.model_type = 2
    m.trainer_spec.byte_fallback = True
    m.trainer_spec.unk_id, m.trainer_spec.bos_id, m.trainer_spec.eos_id, m.trainer_spec.pad_id = unk, 2, 1, 0
    m.normalizer_spec.name = "identity"
    m.normalizer_spec.add_dummy_prefix = False
    m.normalizer_spec.remove_extra_whitespaces = False
    m.normalizer_spec.escape_whitespaces = True
    golden("gemma-3-270m", SentencePiece(m.SerializeToString(), {t: i for i, t in enumerate(tokens) if types[i] == CONTROL}))


def real_smollm(path):
    get = fields(path)
    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in get("tokenizer.ggml.merges")]))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, types) if k == CONTROL])
    golden("smollm2-135m", HuggingFace(tok))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    small_spm()
    small_hf()
    if len(sys.argv) > 2:
        real = Path(sys.argv[2])
        real_gemma(real / "gemma-3-270m-q4_k_m.gguf")
        real_smollm(real / "smollm2-135m-instruct-q4_1.gguf")
    (OUT / "made_by.json").write_text(json.dumps({p: importlib.metadata.version(p) for p in ("sentencepiece", "tokenizers")}) + "\n")
    print(len(CASES), "texts")


main()

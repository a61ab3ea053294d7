#!/usr/bin/env python3
"""Goldens of src/tok, from the Hugging Face `tokenizers` library.

    python3 tools/golden/tokenizer.py            write the cases again, from the committed tokenizers
    python3 tools/golden/tokenizer.py --train    make the small tokenizers again first (they were trained on
                                                 the texts below and on this file as it then was)

Writes tests/golden/tokenizer/:
    <name>.json      a small tokenizer (gemma, llama3, gpt2, qwen, llama2, meta, odd)
    cases.jsonl      one text a line: {"t": text} or {"x": hex of ill-formed UTF-8}, {"n": repeat} with either
    <name>.jsonl     line k: what the tokenizer makes of text k
        i  ids, special tokens found      p  ids, special text as plain text (absent: as i)
        d  decoded (absent: the text)     s  decoded without special tokens (absent: as d)
        c, h  instead of i: how many ids, and FNV-1a 64 of them as little-endian 32-bit words
      after those, {"r": ids, "d": ..., "s": ...}: decodes of random ids
    tiny.jsonl       the same for models/tiny/tokenizer.json
    versions.json    what made them
"""
import json
import platform
import random
import sys
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/golden/tokenizer"
LONG = 300  # ids beyond this many are stored as count and hash

PROSE = """The quick brown fox jumps over the lazy dog, while forty-two engineers don't agree about it.
It was a bright cold day in April; the clocks were striking thirteen and nobody's watch was right.
She'll say that they've gone, I'm sure we'd have known: the city's walls were 1,234.56 metres long.
A memory that forgets nothing is a burden; a memory that chooses what to keep is called judgement.
In the year 1987 the harbour froze, the ships waited, and the bread cost 3.50 a loaf until spring.
Naïve café owners résumé their façade; the coöperative élite über-read Dvořák, Łódź and São Paulo.
Every session keeps its own rows, every row has its place, and every place can be named and found.""".split("\n")
CODE = """static int run_step(struct tok_enc *e, int i, const u8 *s, size_t len)\n{\n    return len ? e->n : 0;\n}
for i in range(10):\n    if x[i] != 0x7f and not done:\n        print(f"{x[i]:>8.3f}\\t{name!r}")\n
SELECT id, name FROM users WHERE age >= 21 AND city <> 'Zürich' ORDER BY name DESC;
fn main() -> Result<(), Box<dyn Error>> { let v: Vec<u8> = vec![0; 16]; Ok(()) }
<div class="a-b_c" id='x1'><a href="https://example.org/?q=1&r=%20">link</a></div>
{"key": [1, 2.5e-10, null, true], "nested": {"a\\nb": "\\u00e9"}}
#include <stdio.h>\r\n#define MAX(a,b) ((a)>(b)?(a):(b))\r\n\tint\tx = 07;\r\n
git commit -m "fix: don't crash" && make -j4 2>&1 | tee build/log.txt
  \\begin{equation} \\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2} \\end{equation}""".split("\n")
FOREIGN = """东京的天气很好，我们去公园散步吧。
日本語の文章を、トークンに分けます。カタカナと漢字ー々〇。
한국어 문장도 토큰으로 나눕니다. 안녕하세요!
Привет, как дела? Сегодня 25 декабря.
Ελληνικά γράμματα και τόνοι: άέήίόύώ.
שלום עולם, מה שלומך היום?
مرحبا بالعالم، كيف حالك؟ ١٢٣٤٥
नमस्ते दुनिया, आप कैसे हैं? १२३
สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง
Tiếng Việt có nhiều dấu: ắ ằ ẳ ẵ ặ
မြန်မာစာ ខ្មែរ ລາວ ქართული հայերեն ᏣᎳᎩ አማርኛ
ˈfəʊnɛtɪk ∑∫√∞≠≤ ⅓ ½ ² ³ ⁴ Ⅳ ⑦ ㊿ ① 〇 ٣ ߃ 𝟘𝟙 𐌰𐌱 𒀀""".split("\n")
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇯🇵🇫🇷", "❤️", "🧑🏿‍🚀", "1️⃣", "☺︎", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🤷🏻‍♂️", "©®™"]
MARKS = ["e\u0301", "a\u0323\u0302", "a\u0302\u0323", "n\u0303o\u0308", "\u1e9b\u0323", "q\u0307\u0323", "\u0301x", "Z" + "\u0300\u0316\u0334\u0345" * 6,
         "\u0958", "\u2126\u212b", "가각", "\u1100\u1161\u11a8", "\ufb01ﬂ", "ｆｕｌｌ　ｗｉｄｔｈ", "ſt", "İIıi", "ǅ", "\u0344", "\u0f73\u0f75"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\t\t ", "\u00a0", "\u2003", "\u3000", "\u200b", "\u180e", "\u2028", "\x0b", "\x0c", "\x1c", "\x85",
          "\ufeff", "\u202f"]
SPECIAL = ["<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<mask>", "<s>", "</s>", "<|begin_of_text|>",
           "<0x0A>", "<0xE2>", "▁", "▁▁", "Ġ", "Ċ", "[WORD]", "word", "WORD", "a b", "<bo", "s>", "<<bos>>", "<BOS>"]
BROKEN = ["ff", "80", "c3", "c328", "e282", "e28241", "f09f98", "f09f9841", "eda080", "f4908080", "c080", "e08080", "f08080ff", "e282ace2", "61f0ff62", "fe62ff", "f8888080",
          "c3a9c3", "f0908080f0", "efbfbdef", "80808080", "e2e2e2", "f09f98f09f9880", "edbfbf", "00ff00"]


def texts():
    """(text or bytes, repeat) in a fixed order."""
    r = random.Random(20240607)
    out = [("", 1)]
    base = PROSE + CODE + FOREIGN + EMOJI + MARKS + SPACES + SPECIAL
    out += [(x, 1) for x in base]
    out += [(chr(c), 1) for c in list(range(128)) + [0xe9, 0x142, 0x143, 0x100, 0x120, 0xfffd, 0xffff, 0x10ffff, 0xe000]]
    code = [line for line in CODE if line]
    words = " ".join(PROSE).split()
    fw = [w for line in FOREIGN for w in line.split()]
    for _ in range(170):  # prose
        out.append((" ".join(r.choice(words) for _ in range(r.randint(1, 10))), 1))
    for _ in range(90):  # pieces of code lines
        line = r.choice(code)
        a = r.randrange(len(line))
        out.append((line[a:a + r.randint(1, 50)], 1))
    for _ in range(110):  # words of several scripts
        out.append((r.choice(["", " "]).join(r.choice(fw + words) for _ in range(r.randint(1, 6))), 1))
    for _ in range(60):
        out.append(("".join(r.choice(EMOJI + MARKS + [" ", "a"]) for _ in range(r.randint(1, 5))), 1))
    for _ in range(90):  # white space
        out.append(("".join(r.choice(SPACES + words[:20]) for _ in range(r.randint(2, 9))), 1))
    for _ in range(60):  # numbers
        out.append((r.choice(["", " ", "x", "-"]).join(str(r.randrange(10 ** r.randint(1, 12))) for _ in range(r.randint(1, 4))), 1))
    for _ in range(130):  # special text among the rest
        out.append(("".join(r.choice(SPECIAL + ["a", " ", "  ", "é", ",", "\n", "word", "_"]) for _ in range(r.randint(2, 7))), 1))
    for _ in range(60):  # any characters
        out.append(("".join(chr(r.choice([r.randrange(0x80), r.randrange(0xd800), r.randrange(0x10000, 0x20000)])) for _ in range(r.randint(1, 12))), 1))
    out += [(bytes.fromhex(x), 1) for x in BROKEN]
    for _ in range(45):  # broken in the middle of text
        b = bytearray(r.choice(PROSE[5:] + FOREIGN + EMOJI).encode()[:40])
        for _ in range(r.randint(1, 4)):
            b[r.randrange(len(b))] = r.randrange(256)
        out.append((bytes(b), 1))
    for x, n in [(" ", 700), ("a", 900), ("\n", 400), ("ab ", 500), ("é", 300), ("0", 333), ("😀", 120), ("the ", 400), (" \n", 300), ("\u0301", 200), ("▁", 90), ("<bos>", 50),
                 (PROSE[0] + "\n", 20), ("".join(FOREIGN), 4), ("x" * 31, 1), ("x" * 32, 1), ("x" * 33, 1), ("'s", 200), ("!?", 400)]:
        out.append((x, n))
    return out


def corpus():
    r = random.Random(5)
    lines = PROSE * 6 + CODE * 4 + FOREIGN * 2 + [Path(__file__).read_text()]
    words = " ".join(PROSE).split()
    return lines + [" ".join(r.choice(words) for _ in range(12)) for _ in range(120)]


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def save(tok, name, edit=None):
    j = json.loads(tok.to_str())
    if edit:
        edit(j)
    text = json.dumps(j, ensure_ascii=False, separators=(",", ":"))
    Tokenizer.from_str(text)
    (OUT / f"{name}.json").write_text(text + "\n")


def drop_byte_tokens(j):
    """Byte tokens belong to the model's vocabulary, not to the added tokens."""
    j["added_tokens"] = [a for a in j["added_tokens"] if a["content"] not in BYTES]


def string_merges(j):
    j["model"]["merges"] = [" ".join(m) for m in j["model"]["merges"]]


def train(tok, size, special, alphabet=(), limit=None):
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=list(alphabet), limit_alphabet=limit or 400, show_progress=False))


def sentencepiece(size, special, alphabet):
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Replace(" ", "▁")
    tok.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training alone
    train(tok, size, special + BYTES, limit=alphabet)
    return tok


def make_gemma():
    tok = sentencepiece(1100, ["<pad>", "<eos>", "<bos>", "<unk>"], 90)
    tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tok.add_special_tokens(["<start_of_turn>", "<end_of_turn>"])
    tok.add_tokens([AddedToken(x, normalized=False) for x in ["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "<mask>", "<div", "<a"]])
    save(tok, "gemma", drop_byte_tokens)


def make_llama2():
    tok = sentencepiece(700, ["<unk>", "<s>", "</s>"], 70)
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.pre_tokenizer = None
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])

    def edit(j):  # some bytes have no token: characters with them are unknown
        drop_byte_tokens(j)
        string_merges(j)
        v = j["model"]["vocab"]
        for b in (0xf0, 0xe0, 0xe4, 0xd8):
            del v[BYTES[b]]
    save(tok, "llama2", edit)


def byte_level(name, size, regex, special, normalizer=None, edit=None, prefix=False, ignore=False, added=()):
    tok = Tokenizer(models.BPE(ignore_merges=ignore))
    if normalizer:
        tok.normalizer = normalizer
    if regex:
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)])
    else:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tok.decoder = decoders.ByteLevel()
    train(tok, size, special, pre_tokenizers.ByteLevel.alphabet())
    tok.add_tokens(list(added))
    save(tok, name, edit)


def unreachable(j):
    """Tokens that no merges make: found by ignore_merges alone."""
    v = j["model"]["vocab"]
    n = max(list(v.values()) + [a["id"] for a in j["added_tokens"]]) + 1
    for w in ["Ġburden", "ĠpublishedX", "xyzzy", "Ġjudgement", "ãĢĤ", "Ċ", "éĩı"]:
        if w not in v:
            v[w] = n
            n += 1


def make_meta():
    """Metaspace on both sides, compatibility normalization, tokens with every flag."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Digits(individual_digits=False)])
    tok.decoder = decoders.Metaspace(prepend_scheme="first")
    train(tok, 420, ["<unk>", "<s>", "</s>"], limit=120)
    tok.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True), AddedToken("<bos>", rstrip=True, special=True, normalized=True)])
    tok.add_tokens([AddedToken("WORD", single_word=True, normalized=True), AddedToken("[WORD]", lstrip=True, rstrip=True, normalized=False), AddedToken("fox", single_word=True, normalized=False)])
    save(tok, "meta", string_merges)


def make_odd():
    """Every other way to split, and no decoder."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFD(), normalizers.Replace(Regex(r"\s+"), " ")])
    S = pre_tokenizers.Split
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        S(Regex(r"\w+|[^\w\s]+"), "contiguous", invert=True), S(" ", "removed"), S(Regex(r"[\h]{2}"), "merged_with_previous"), S("e", "merged_with_next"),
        S(Regex(r"\p{Han}{1,2}+|^a|x*"), "isolated"), pre_tokenizers.Digits(individual_digits=True), S(Regex(r"\p{N}|o"), "contiguous")])
    train(tok, 330, ["<unk>", "<bos>"], limit=150)
    save(tok, "odd")


def make_all():
    mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    make_gemma()
    make_llama2()
    byte_level("llama3", 700, LLAMA3, ["<|begin_of_text|>", "<|endoftext|>"], edit=unreachable, ignore=True)
    byte_level("gpt2", 700, None, ["<|endoftext|>"], edit=string_merges, prefix=True, added=[mask, AddedToken("word", single_word=True), AddedToken("é ☃", special=False)])
    byte_level("qwen", 700, QWEN, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizers.NFC())
    make_meta()
    make_odd()


def fnv(ids):
    h = 0xcbf29ce484222325
    for b in b"".join(i.to_bytes(4, "little") for i in ids):
        h = ((h ^ b) * 0x100000001b3) % 2 ** 64
    return f"{h:016x}"


def random_ids(tok, r):
    """Ids of random tokens; byte tokens come as whole characters (see tok.h)."""
    vocab = tok.get_vocab()
    plain = sorted(i for t, i in vocab.items() if t not in BYTES)
    ids = []
    for _ in range(r.randint(1, 12)):
        c = [vocab.get(f"<0x{b:02X}>") for b in chr(r.choice([65, 0xe9, 0x20ac, 0x1f600])).encode()]
        ids += c if None not in c and r.random() < .3 else [r.choice(plain)]
    return ids


def decodes(tok, ids, text):
    d, s = tok.decode(ids, skip_special_tokens=False), tok.decode(ids)
    return {**({"d": d} if d != text else {}), **({"s": s} if s != d else {})}


def case(tok, text):
    tok.encode_special_tokens = False
    ids = tok.encode(text, add_special_tokens=False).ids
    row = {"i": ids} if len(ids) <= LONG else {"c": len(ids), "h": fnv(ids)}
    tok.encode_special_tokens = True
    plain = tok.encode(text, add_special_tokens=False).ids
    if plain != ids:
        row["p"] = plain if len(plain) <= LONG else {"c": len(plain), "h": fnv(plain)}
    if len(ids) <= LONG:
        row.update(decodes(tok, ids, text))
    return row


def dump(path, rows):
    path.write_text("".join(json.dumps(x, ensure_ascii=False, separators=(",", ":")) + "\n" for x in rows))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    if "--train" in sys.argv:
        make_all()
    cases = texts()
    rows = [{**({"t": t} if isinstance(t, str) else {"x": t.hex()}), **({"n": n} if n > 1 else {})} for t, n in cases]
    dump(OUT / "cases.jsonl", rows)
    for path in [ROOT / "models/tiny/tokenizer.json"] + sorted(p for p in OUT.glob("*.json") if p.stem != "versions"):
        name = "tiny" if path.stem == "tokenizer" else path.stem
        tok = Tokenizer.from_file(str(path))
        r = random.Random(name)
        out = [case(tok, (t if isinstance(t, str) else t.decode("utf-8", "replace")) * n) for t, n in cases]
        for _ in range(40):
            ids = random_ids(tok, r)
            out.append({"r": ids, **decodes(tok, ids, None)})
        dump(OUT / f"{name}.jsonl", out)
    versions = {"python": platform.python_version(), "tokenizers": tokenizers.__version__, "texts": len(cases)}
    (OUT / "versions.json").write_text(json.dumps(versions) + "\n")
    print(len(cases), "texts")


if __name__ == "__main__":
    main()

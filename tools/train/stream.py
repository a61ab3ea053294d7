"""Documents to ids, and an endless stream of training rows from worker processes.

A row of ROW ids is cut in equal segments; each segment is a stretch of one kind of text that starts with BOS. Row n of
worker k depends on (seed, k, n, segment) alone, and the workers are read in turn, so a run sees the same rows in the
same order on any machine with the same library and number of workers.
"""
import multiprocessing as mp
import os
import random
import re

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import documents as doc

BOS, MASK, ROW = 2, 4, 16384
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", doc.TURN, doc.END]
TURN_ID = SPECIAL.index(doc.TURN)
# What ByteLevel splits ASCII text into, after every digit has been set apart.
PIECES = re.compile(r"[0-9]|'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+")
MARKERS = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
SHORT, LONG, DRAFT, FTHETA = range(4)                # mixes: segments under 4096, longer ones, what the others learn from
MIX = {"code": (0.16, 0.17, 0.26, 0.16), "classes": (0.05, 0.04, 0.10, 0.04), "needle": (0.06, 0.10, 0.08, 0.06),
       "keyed": (0.26, 0.19, 0.16, 0.12), "tools": (0.08, 0.07, 0.13, 0.10), "chat": (0.16, 0.22, 0.20, 0.44),
       "turn": (0.12, 0.19, 0.07, 0.08), "copy": (0.11, 0.02, 0.0, 0.0)}


def train_tokenizer(texts, vocabulary=2048):
    """Byte-level BPE with single digits and Gemma's turn markers."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tok


class Encoder:
    """tokenizer.encode of ASCII text without special tokens added, ten times as fast: pieces are looked up."""

    def __init__(self, path):
        self.tok, self.known = Tokenizer.from_file(path), {}

    def texts(self):
        """What each ordinary token stands for, alone."""
        n = self.tok.get_vocab_size()
        return [self.tok.decode([i], skip_special_tokens=False) for i in range(len(SPECIAL), n)]

    def __call__(self, text):
        out, known = [], self.known
        for part in MARKERS.split(text):
            if part in SPECIAL:
                out.append(SPECIAL.index(part))
                continue
            for p in PIECES.findall(part):
                ids = known.get(p)
                if ids is None:
                    ids = known[p] = self.tok.encode(p, add_special_tokens=False).ids
                out += ids
        return out


class Source:
    """Segments of one kind of text. `code`: ids of the library, files one after the other, each BOS .. EOS."""

    def __init__(self, encoder, words, code):
        self.enc, self.w, self.code = encoder, words, code
        self.newline, self.vocabulary = encoder("\n"), encoder.tok.get_vocab_size()

    def document(self, r, kind, room):
        w = self.w.few(r) if kind in ("keyed", "turn", "chat") else self.w
        whole = r.random() < 0.5                     # one document for all that is left, or several
        n = room if whole else r.randint(min(200, room), room)
        if kind == "needle":
            return doc.needle(w, r, max(1, (n - 40) // 20))
        if kind == "turn" and r.random() < 0.3:
            return doc.needle_in_turn(w, r, max(10, int(r.uniform(0.7, 1) * n / 34)))
        if kind in ("keyed", "turn"):
            facts = r.choice([2, 3, 5, 8, 12, 16, 20, 32])
            facts = max(1, min(facts, n // 60))
            asked = max(1, min(r.choice([1, facts, facts, 2 * facts]), n // 80))
            line = len(self.enc("".join("\n" + w.sentence(r) for _ in range(8)))) / 8
            lines = r.choice([0, 1, 1, 1]) * max(0, int((n - 28 * facts - (33 if kind == "keyed" else 42) * asked) / line))
            write = doc.keyed if kind == "keyed" else doc.keyed_in_turns
            return write(w, r, facts, lines if whole else r.randint(0, lines), asked)
        if kind == "tools":
            return doc.tools(w, r, max(1, min(n // 50, r.randint(3, 40))))
        if kind == "classes":
            return doc.classes(w, r, r.randint(1, 3))
        if kind == "chat":
            return doc.chat(w, r, int(2.6 * n))
        return doc.copy(w, r, r.randint(5, max(6, n // 8)))

    def segment(self, r, kind, length):
        if kind == "code":
            at = r.randrange(max(1, len(self.code) - length + 1))
            ids = np.array(self.code[at:at + length])
            ids[0] = BOS
            return ids
        out = []
        while len(out) < length:
            out.append(BOS)
            if kind == "copy" and r.random() < 0.5:  # any tokens at all, twice
                some = [r.randrange(len(SPECIAL), self.vocabulary) for _ in range(r.randint(5, max(6, (length - len(out)) // 4)))]
                out += some + self.newline + some + self.newline + [1]
                continue
            out += self.enc(self.document(r, kind, max(60, length - len(out))))
        return np.array(out[:length], dtype=np.int16)

    def row(self, r, segment, size, mix=None):
        mix = (LONG if segment >= 4096 else SHORT) if mix is None else mix
        kinds, weights = list(MIX), [v[mix] for v in MIX.values()]
        return np.concatenate([self.segment(r, r.choices(kinds, weights)[0], segment) for _ in range(size // segment)])


def library_ids(encoder, library, part):
    batch = encoder.tok.encode_batch([t for t in library.texts(part)], add_special_tokens=False)
    if not batch:
        raise SystemExit("tools/train: this Python has no sources of its standard library to learn from")
    return np.array([i for e in batch for i in [BOS] + e.ids + [1]], dtype=np.int16)


def work(queue, source, seed, segment, size, mix):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    n = 0
    while True:
        s = segment.value
        queue.put((s, source.row(random.Random(f"{seed} {n}"), s, size, mix)))
        n += 1


class Stream:
    """Rows of `size` ids from `workers` processes, in turn. set(segment): rows of the new length from now on."""

    def __init__(self, source, seed, segment, workers, size=ROW, mix=None):
        self.segment = mp.Value("i", segment)
        self.queues = [mp.Queue(6) for _ in range(max(1, workers))]
        self.jobs = [mp.Process(target=work, args=(q, source, f"{seed} {k}", self.segment, size, mix), daemon=True)
                     for k, q in enumerate(self.queues)]
        self.turn = 0
        for j in self.jobs:
            j.start()

    def set(self, segment):
        self.segment.value = segment

    def rows(self, n):
        """-> [n, size] int64"""
        out = []
        while len(out) < n:
            q = self.queues[self.turn % len(self.queues)]
            s, row = q.get()
            if s == self.segment.value:              # what was made before a change is dropped
                out.append(row)
            self.turn += 1
        return np.stack(out).astype(np.int64)

    def close(self):
        for j in self.jobs:
            j.terminate()
            j.join()

"""Stage `data`: the tokenizer, and a sample of every kind of document to look at. The documents themselves are drawn
while a net trains (stream.py)."""
import os
import random
import shutil
import string

import documents as doc
import stream


def run(setup):
    o = setup.o
    path = os.path.join(setup.out, "tokenizer.json")
    library = setup.library()
    if o.tokenizer == "new":
        r, words = random.Random(o.seed), doc.Words(library, setup.bench.reserved, string.ascii_letters)
        texts = list(library.texts("train")) + [doc.needle(words, r, 60) for _ in range(50)] + [doc.chat(words, r, 4000) for _ in range(200)]
        stream.train_tokenizer(texts).save(path)
    elif not os.path.exists(path) or not os.path.samefile(o.tokenizer, path):
        shutil.copyfile(o.tokenizer, path)
    encoder = stream.Encoder(path)
    words = doc.Words(library, setup.bench.reserved, encoder.texts())
    source = stream.Source(encoder, words, None)
    r = random.Random(o.seed)
    with open(os.path.join(setup.out, "samples.txt"), "w", encoding="utf-8") as f:
        for kind in stream.MIX:
            if kind != "code":
                f.write(f"---- {kind}\n{source.document(r, kind, 700)}\n\n")
    setup.log("library files:", {k: len(v) for k, v in library.files.items()}, "words:", len(words.library))

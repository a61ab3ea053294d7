"""Agents with a document each, all at once: needles.py ADDRESS KAKEYA N. Every one must say the code
of its own document, and nobody else's. "ok - ..." lines for tests/run.py; the server has models/tiny.
"""
import asyncio
import json
import random
import subprocess
import sys

from kakeya import aio

ADDRESS, KAKEYA, N = sys.argv[1], sys.argv[2], int(sys.argv[3])
BOS, LINES = 2, 60
WORDS = ["ALPHA", "BETA", "GAMMA", "DELTA", "ZETA", "THETA", "ORCHID", "PINE", "MAPLE", "OAK", "BIRCH"]


def tokenize(*words, text=None):
    command = [KAKEYA, "tokenize", "-m", "models/tiny", "--json", *words]
    return json.loads(subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout)


def document(number):
    """The text of bench niah, and its code."""
    r = random.Random(number)
    code = f"{WORDS[number % len(WORDS)]}-{1000 + number * 137 % 9000}"
    lines = [f"Note {i:04d}: this paragraph is unrelated padding and does not contain the answer.\n"
             for i in range(LINES)]
    lines.insert(r.randint(4, LINES - 4), f"\nIMPORTANT: the secret code is {code}.\n\n")
    return "".join(lines) + "Question: what is the secret code? Answer:", code


async def agent(client, ids, all_have_read):
    async with await client.create_session() as s:
        for at in range(0, len(ids), 300):
            await s.append_tokens(ids[at:at + 300])
        await all_have_read()
        out = [t async for t in s.generate(24, ignore_eos=True)]
        info = await s.info()
        assert info.history_length == len(ids) + 24
        return out


async def main():
    documents = [document(i) for i in range(N)]
    codes = [code for _, code in documents]
    assert len(set(codes)) == N
    ids = [[BOS] + tokenize("-f", "-", text=text)["ids"] for text, _ in documents]
    reading, done = N, asyncio.Event()

    async def all_have_read():
        nonlocal reading
        reading -= 1
        if not reading:
            done.set()
        await done.wait()

    async with aio.Client(ADDRESS, timeout=240) as client:
        answers = await asyncio.gather(*(agent(client, i, all_have_read) for i in ids))
    said = [tokenize("--decode", ",".join(map(str, a)))["text"] for a in answers]
    own = sum(code in text for code, text in zip(codes, said))
    others = sum(other in text for text, code in zip(said, codes) for other in codes if other != code)
    word = "ok" if own == N and not others else "not ok"
    print(f"{word} - {own} of {N} sessions at once say the code of their own document, {others} another's")


asyncio.run(main())

"""A server whose disk fills up while it serves: full_disk.py ADDRESS METRICS STATE FILE.

The first time sessions write while the disk is full for a while, the second time (after kill -9)
they go on. STATE is the server's directory; what the first run was told is in FILE."""
import json
import os
import re
import sys
import threading
import time
import urllib.request

import kakeya

ADDRESS, METRICS, STATE, FILE = sys.argv[1:5]
FILLER = os.path.join(STATE, "filler")
SESSIONS, TOKENS, MORE = 4, 300, 10


def prompt(i):
    return [2] + [20 + (i * 131 + k * 17) % 1500 for k in range(40)]


def metric(name):
    with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=10) as page:
        return float(re.search("^" + re.escape(name) + " (.*)$", page.read().decode(), re.M)[1])


def broken():
    return metric("kakeya_state_broken") == 1


def snapshot_bytes():
    return metric('kakeya_kv_bytes{kind="disk"}')


def until(what, condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def fill():
    with open(FILLER, "ab", buffering=0) as f:
        for size in (1 << 20, 1 << 16, 1 << 12, 1):
            try:
                while True:
                    f.write(bytes(size))
            except OSError:
                pass


class Writer(threading.Thread):
    def __init__(self, session):
        super().__init__()
        self.session, self.said = session, []
        self.start()

    def run(self):
        for token in self.session.generate(TOKENS, ignore_eos=True, timeout=120):
            self.said.append(token)


def first(client):
    idle = [client.create_session() for _ in range(3)]
    for i, s in enumerate(idle):
        s.append_tokens(prompt(10 + i) * 5)
    until("idle sessions are on disk", lambda: snapshot_bytes() > 0)
    sessions = [client.create_session() for _ in range(SESSIONS)]
    for i, s in enumerate(sessions):
        s.append_tokens(prompt(i))
    writers = [Writer(s) for s in sessions]
    until("tokens come", lambda: all(len(w.said) > 2 for w in writers))
    fill()
    until("the snapshots make room", lambda: snapshot_bytes() == 0)
    fill()
    until("the journal is broken", lambda: fill() or broken())
    time.sleep(0.3)
    before = [len(w.said) for w in writers]
    assert all(s.info().history_length > 0 for s in sessions + idle)
    time.sleep(1)
    assert before == [len(w.said) for w in writers], "tokens were sent that are not on disk"
    assert min(before) < TOKENS, "the disk was full too late"
    os.unlink(FILLER)
    for w in writers:
        w.join()
    until("the journal is mended", lambda: not broken())
    assert all(len(w.said) == TOKENS for w in writers), [len(w.said) for w in writers]
    with open(FILE, "w") as f:
        json.dump([{"id": w.session.session_id, "said": w.said} for w in writers], f)


def second(client):
    with open(FILE) as f:
        before = json.load(f)
    for i, b in enumerate(before):
        session = client.session(b["id"])
        assert session.info().history_length == len(prompt(i)) + len(b["said"]), session.info()
        after = list(session.generate(MORE, ignore_eos=True))
        with client.create_session() as fresh:
            fresh.append_tokens(prompt(i))
            assert list(fresh.generate(len(b["said"]) + MORE, ignore_eos=True)) == b["said"] + after
        b["said"] += after
    with open(FILE, "w") as f:
        json.dump(before, f)


with kakeya.Client(ADDRESS, timeout=120) as client:
    second(client) if os.path.exists(FILE) else first(client)

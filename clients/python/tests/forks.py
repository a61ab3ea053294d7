"""Forks of one session across the server's death: forks.py ADDRESS METRICS FILE, once before it and
once after it. The server has room for some of them on the device and for some in host memory; all
others are in files, and come back from there."""
import json
import os
import sys
import time
import urllib.request

import kakeya

ADDRESS, METRICS, FILE = sys.argv[1], sys.argv[2], sys.argv[3]
PROMPT = [(i * 7919 + 3) % 1000 for i in range(700)]
FORKS, SAID = 24, 6


def own(i):
    return [(i * 131 + k * 17) % 1000 for k in range(9)]


def metric(name):
    page = urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=10).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


def before(client):
    parent = client.create_session(client_label="parent")
    parent.append_tokens(PROMPT)
    one = parent.info().kv_device_bytes + parent.info().kv_shared_bytes
    said = {}
    for i in range(FORKS):
        fork = parent.fork(client_label=f"fork {i}")
        fork.append_tokens(own(i))
        said[fork.session_id] = list(fork.generate(SAID, ignore_eos=True))
    deadline = time.time() + 60
    while metric("kakeya_kv_bytes{kind=\"disk\"}") < one / 2 and time.time() < deadline:
        time.sleep(0.1)
    everywhere = sum(metric("kakeya_kv_bytes{kind=\"%s\"}" % kind)
                     for kind in ("device", "host", "disk"))
    assert metric("kakeya_sessions{where=\"elsewhere\"}") > 4, "none is in a file"
    assert everywhere < one * FORKS / 2, f"{everywhere} bytes for {FORKS} forks of {one}"
    with open(FILE, "w") as f:
        json.dump(said, f)


def after(client):
    with open(FILE) as f:
        said = json.load(f)
    assert metric("kakeya_snapshots_lost_total") == 0
    for i, (session_id, tokens) in enumerate(said.items()):
        fork = client.session(session_id)
        assert fork.info().history_length == len(PROMPT) + len(own(i)) + SAID, fork.info()
        more = list(fork.generate(SAID, ignore_eos=True))
        with client.create_session() as fresh:
            fresh.append_tokens(PROMPT + own(i))
            assert list(fresh.generate(2 * SAID, ignore_eos=True)) == tokens + more, session_id
        fork.close()
    assert metric("kakeya_snapshots_lost_total") == 0, "a file was of no use"


def main():
    with kakeya.Client(ADDRESS, timeout=120) as client:
        (after if os.path.exists(FILE) else before)(client)


main()

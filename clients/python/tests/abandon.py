"""Sessions that nobody closes: abandon.py ADDRESS METRICS COUNT. The server has --idle-ttl 1."""
import asyncio
import sys
import time
import urllib.request

from kakeya import aio

ADDRESS, METRICS, COUNT = sys.argv[1], sys.argv[2], int(sys.argv[3])


def metric(name):
    page = urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=20).read().decode()
    return float(next(line for line in page.splitlines() if line.startswith(name + " ")).split()[1])


async def opened(client, n):
    session = await client.create_session(client_label=f"left alone {n}")
    if n % 10 == 0:
        await session.append_tokens([2, 3, n % 1000])
    return session.session_id


async def main():
    before = metric("session_kv_live_bytes")
    ids = set()
    async with aio.Client(ADDRESS, timeout=60) as client:
        for start in range(0, COUNT, 100):
            ids.update(await asyncio.gather(*(opened(client, n) for n in range(start, min(COUNT, start + 100)))))
    assert len(ids) == COUNT
    assert metric("kakeya_sessions_created_total") == COUNT
    until = time.time() + 30
    while metric("session_active") and time.time() < until:
        time.sleep(.1)
    assert metric("session_active") == 0, metric("session_active")
    assert metric('session_evicted_total{reason="ttl"}') == COUNT
    assert metric("session_kv_live_bytes") == before
    print(f"ok - {COUNT} abandoned sessions expire, and their bytes come back")


asyncio.run(main())

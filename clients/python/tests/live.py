"""Tests of the package against a server: live.py ADDRESS. Prints "ok - ..." lines for tests/run.py.

The server has models/tiny, capacity 24, metrics not needed.
"""
import asyncio
import sys
import threading
import time
import traceback

import kakeya
from kakeya import aio

ADDRESS = sys.argv[1]
PROMPT = [2, 17, 301, 44, 9, 1000, 7]
TESTS = []


def test(f):
    TESTS.append(f)
    return f


def raises(kind, f, *args, **kwargs):
    try:
        f(*args, **kwargs)
    except kind as e:
        return e
    raise AssertionError(f"no {kind.__name__}")


def make(client, prompt=PROMPT):
    session = client.create_session(client_label="live ünïcode")
    assert session.append_tokens(prompt) == len(prompt)
    return session


@test
def a_session_lives(client):
    with make(client) as s:
        assert s.session_id.startswith("sess-") and len(s.session_id) == 37
        tokens = list(s.generate(12, ignore_eos=True))
        assert len(tokens) == 12 and s.last_stop_reason is kakeya.StopReason.MAX_TOKENS
        r = s.last_result
        assert r.generated_token_count == 12 and r.total_duration_seconds > 0 and r.verifier_steps > 0
        info = s.info()
        assert info.history_length == len(PROMPT) + 12
        assert info.kv_live_bytes == info.kv_device_bytes + info.drafter_device_bytes
        assert info.cache_invariant_inv1_violations == info.cache_invariant_inv2_violations == 0
    assert s.close() is None
    raises(kakeya.SessionClosedError, s.append_tokens, [1])
    raises(kakeya.SessionNotFoundError, client.session(s.session_id).info)
    assert client.session(s.session_id).close() is None


@test
def cuts_do_not_matter(client):
    with make(client) as a, client.create_session() as b:
        for t in PROMPT:
            b.append_tokens([t])
        assert b.append_tokens([]) == len(PROMPT)
        assert list(a.generate(16, ignore_eos=True)) == list(b.generate(16, ignore_eos=True))


@test
def seeds_repeat(client):
    def run(seed):
        with make(client) as s:
            out = list(s.generate(16, temperature=1.5, top_k=50, seed=seed, ignore_eos=True))
            return out, s.last_result.seed
    a, seed = run(None)
    assert run(seed) == (a, seed)
    assert run(seed ^ 1)[0] != a
    assert run(2**64 - 1)[1] == 2**64 - 1


@test
def a_fork_goes_its_own_way(client):
    with make(client) as a:
        first = list(a.generate(4, ignore_eos=True))
        with a.fork(client_label="twin") as b:
            assert b.info().history_length == len(PROMPT) + 4
            one = list(a.generate(8, ignore_eos=True))
            two = list(b.generate(8, ignore_eos=True))
            assert one == two and len(first) == 4
            b.append_tokens([5])
            assert a.info().history_length + 1 == b.info().history_length


@test
def mistakes_are_told_apart(client):
    with make(client) as s:
        e = raises(kakeya.InvalidArgumentError, s.append_tokens, [1, 2, 4000000])
        assert "token_ids[2] is 4000000" in str(e) and e.status.name == "INVALID_ARGUMENT"
        raises(kakeya.InvalidArgumentError, lambda: list(s.generate(0)))
        raises(kakeya.InvalidArgumentError, lambda: list(s.generate(1, temperature=-1)))
        raises(kakeya.InvalidArgumentError, lambda: list(s.generate(1, top_p=2)))
        raises(kakeya.ContextFullError, s.append_tokens, [3] * 20000)
        raises(ValueError, s.append_tokens, [-1])
        assert s.info().history_length == len(PROMPT)
    with client.create_session() as s:
        raises(kakeya.InvalidArgumentError, lambda: list(s.generate(1)))
    raises(kakeya.UnavailableError, kakeya.Client("127.0.0.1:1").create_session)
    raises(kakeya.ResourceExhaustedError, client.session("sess-0").append_tokens, [200000] * 2000000)
    path = "/kakeya.v1.RuntimeService/Reticulate"
    try:
        client._channel.unary_unary(path)(b"")
    except Exception as e:
        assert isinstance(kakeya.errors.from_rpc_error(e), kakeya.UnimplementedError)
    else:
        raise AssertionError("an unknown method was answered")


@test
def own_end_of_sequence(client):
    with make(client) as s:
        plain = list(s.generate(8, ignore_eos=True))
    stop = plain[3]
    with client.create_session(eos_token_ids=[stop]) as s:
        s.append_tokens(PROMPT)
        assert list(s.generate(8)) == plain[:plain.index(stop) + 1]
        assert s.last_stop_reason is kakeya.StopReason.EOS


@test
def leaving_a_loop_keeps_the_session(client):
    with make(client) as whole:
        want = list(whole.generate(40, ignore_eos=True))
    with make(client) as s:
        got = []
        for t in s.generate(100000, ignore_eos=True):
            got.append(t)
            if len(got) == 5:
                break
        n = s.info().history_length - len(PROMPT)
        assert got == want[:5] and n >= 5
        assert s.last_stop_reason is None
        if n < 30:
            assert list(s.generate(4, ignore_eos=True)) == want[n:n + 4]


@test
def time_runs_out(client):
    with make(client) as s:
        raises(kakeya.DeadlineExceededError, lambda: list(s.generate(10**6, ignore_eos=True, timeout=.2)))
        s.append_tokens([1])
    with make(client) as s:
        assert len(list(s.generate(8, ignore_eos=True, inter_token_timeout_s=20))) == 8
        raises(kakeya.InterTokenTimeoutError,
               lambda: list(s.generate(8, ignore_eos=True, inter_token_timeout_s=1e-5)))


@test
def two_calls_on_a_session_stand_in_line(client):
    with make(client) as s:
        other, out = client.session(s.session_id), {}
        def run(name, session):
            out[name] = list(session.generate(30, ignore_eos=True))
        threads = [threading.Thread(target=run, args=a) for a in (("a", s), ("b", other))]
        for t in threads: t.start()
        for t in threads: t.join()
        with make(client) as alone:
            want = list(alone.generate(60, ignore_eos=True))
        assert out["a"] + out["b"] == want or out["b"] + out["a"] == want


@test
def capacity_is_told(client):
    held = []
    try:
        e = raises(kakeya.ResourceExhaustedError, lambda: [held.append(client.create_session()) for _ in range(60)])
        assert len(held) == 24, len(held)
        assert e.status.name == "RESOURCE_EXHAUSTED"
    finally:
        for s in held:
            s.close()


@test
def health_is_answered(client):
    call = lambda path, body: client._channel.unary_unary(path)(body)
    assert call("/grpc.health.v1.Health/Check", b"") == b"\x08\x01"
    assert call("/grpc.health.v1.Health/Check", b"\x0a\x18kakeya.v1.RuntimeService") == b"\x08\x01"
    try:
        call("/grpc.health.v1.Health/Check", b"\x0a\x04else")
    except Exception as e:
        assert isinstance(kakeya.errors.from_rpc_error(e), kakeya.SessionNotFoundError)
    watch = client._channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
    assert next(watch) == b"\x08\x01"
    watch.cancel()


@test
def asyncio_does_the_same(client):
    with make(client) as s:
        want = list(s.generate(10, ignore_eos=True))

    async def agent(c, n):
        async with await c.create_session(client_label=f"agent {n}") as s:
            assert await s.append_tokens(PROMPT) == len(PROMPT)
            got = [t async for t in s.generate(10, ignore_eos=True)]
            assert s.last_stop_reason is kakeya.StopReason.MAX_TOKENS
            fork = await s.fork()
            assert (await fork.info()).history_length == len(PROMPT) + 10
            assert await fork.close() == len(PROMPT) + 10
            return got

    async def main():
        async with aio.Client(ADDRESS, timeout=120) as c:
            assert await asyncio.gather(*(agent(c, n) for n in range(6))) == [want] * 6
            s = await c.create_session()
            for call in (s.append_tokens([4000000]), anext_of(s.generate(1))):
                try:
                    await call
                except kakeya.InvalidArgumentError:
                    continue
                raise AssertionError("no InvalidArgumentError")
            await s.append_tokens(PROMPT)
            try:
                async for _ in s.generate(10, ignore_eos=True, inter_token_timeout_s=1e-5):
                    pass
            except kakeya.InterTokenTimeoutError:
                pass
            else:
                raise AssertionError("no InterTokenTimeoutError")
            await s.close()
            assert await s.close() is None

    async def anext_of(iterator):
        return await iterator.__anext__()

    asyncio.run(main())


def main():
    failed = 0
    for f in TESTS:
        name, start = f.__name__.replace("_", " "), time.time()
        try:
            with kakeya.Client(ADDRESS, timeout=120) as client:
                f(client)
            print(f"ok - {name} ({time.time() - start:.1f} s)")
        except Exception:
            failed = 1
            print(f"not ok - {name}")
            print("    " + traceback.format_exc().replace("\n", "\n    "))
        sys.stdout.flush()
    sys.exit(failed)


if __name__ == "__main__":
    main()

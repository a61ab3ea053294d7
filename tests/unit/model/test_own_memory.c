/* KV on a device with memory of its own: block tables that travel with the step, and a host tier
 * that comes back by the device's copy engine. The device here is the CPU that says it is such a
 * one, with an engine that copies as late as it may and spoils a slot as early as it may. */
#include "kk_test.h"

#include <stdio.h>

#include "base/buf.h"
#include "base/mem.h"
#include "kv/keep.h"
#include "kv/kv.h"
#include "model/model.h"

enum { TOKENS = 1500, CHUNK = 96, MOST = 4096 };

static struct {
    struct {
        void *dst;
        const void *src;
        size_t bytes;
        int64_t batch;
    } copy[MOST];
    int head, tail; /* not done: [tail, head) */
    int64_t batches, waits;
} engine;

static int64_t stage(struct kk_dev *dev, int n, void *const *dst, const void *const *src,
                     const size_t *bytes)
{
    (void)dev;
    engine.batches++;
    for (int i = 0; i < n; i++) {
        memset(dst[i], 0xff, bytes[i]); /* NaN: bf16 and f32 */
        engine.copy[engine.head % MOST].dst = dst[i];
        engine.copy[engine.head % MOST].src = src[i];
        engine.copy[engine.head % MOST].bytes = bytes[i];
        engine.copy[engine.head++ % MOST].batch = engine.batches;
        assert_true(engine.head - engine.tail <= MOST);
    }
    return engine.batches;
}

static void stage_wait(struct kk_dev *dev, int64_t batch)
{
    (void)dev;
    engine.waits++;
    for (; engine.tail < engine.head && engine.copy[engine.tail % MOST].batch <= batch;
         engine.tail++)
        memcpy(engine.copy[engine.tail % MOST].dst, engine.copy[engine.tail % MOST].src,
               engine.copy[engine.tail % MOST].bytes);
}

struct run {
    struct kk_dev *dev;
    struct kk_model *m;
    struct kk_kv_pool *pool;
    struct kk_kv *kv[2];
    int32_t V;
};

/* cap: device bytes of a session, 0 for none; slots: blocks of the staging ring */
static void open_run(struct run *r, const struct kk_ops *ops, int64_t cap, int slots)
{
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    struct kk_kv_layout layout;
    const struct kk_kv_options o = {.policy = "native", .device_cap = cap, .staging_blocks = slots};
    const struct kk_kv_limits kl = {2, CHUNK, 32, ops ? TOKENS + 64 : 0};
    const struct kk_model_limits lim = {.max_rows = CHUNK, .max_logit_rows = 32};
    KK_ASSERT_OK(kk_dev_open_cpu("auto", 2, &r->dev, &err), &err);
    if (ops) {
        r->dev->ops = ops;
        r->dev->unified = 0;
    }
    KK_ASSERT_OK(kk_model_file_open("synth:tests/data/mini.json:5", &mf, &err), &err);
    KK_ASSERT_OK(kk_model_open(mf, r->dev, &lim, NULL, &r->m, &err), &err);
    KK_ASSERT_OK(kk_model_kv_layout(mf, KK_F32, &layout, &err), &err);
    r->V = kk_model_info(r->m)->V;
    kk_model_file_close(mf);
    KK_ASSERT_OK(kk_kv_pool_open(r->dev, &layout, &o, &kl, &r->pool, &err), &err);
    for (int i = 0; i < 2; i++) KK_ASSERT_OK(kk_kv_open(r->pool, &r->kv[i], &err), &err);
    kk_free((void *)(size_t)layout.layer);
}

static void close_run(struct run *r)
{
    for (int i = 0; i < 2; i++) kk_kv_close(r->kv[i]);
    kk_kv_pool_close(r->pool);
    kk_model_close(r->m);
    kk_dev_close(r->dev);
}

static int32_t id_at(int session, int64_t j)
{
    return (int32_t)((j * 7919 + session * 131 + 3) % 160);
}

/* One step: n[i] rows of session i; those of hold[i] are held, of which keep[i] are kept. The
 * logits of each session's last row are added to out. */
static void step(struct run *r, const int32_t *n, const uint8_t *hold, const int32_t *keep,
                 float *out)
{
    struct kk_err err = {0};
    int32_t ids[CHUNK], rows[2];
    int T = 0;
    for (int i = 0; i < 2; i++) {
        for (int32_t k = 0; k < n[i]; k++) ids[T++] = id_at(i, kk_kv_rows(r->kv[i]) + k);
        rows[i] = T - 1;
    }
    const struct kk_forward fwd = {.ids = ids, .n_logits = 2, .logit_rows = rows};
    KK_ASSERT_OK(kk_kv_begin_mixed(r->pool, 2, r->kv, n, hold, &err), &err);
    KK_ASSERT_OK(kk_model_forward(r->m, r->pool, &fwd, &err), &err);
    r->dev->ops->download(r->dev, out, kk_model_logits(r->m), 2 * (size_t)r->V * sizeof(float));
    kk_kv_commit(r->pool, keep);
}

/* Session 0 becomes a fork of itself, now and then: its parent stays for a while, so that the fork
 * writes to pieces of rings that it shares. */
static void fork_one(struct run *r, struct kk_kv **parent)
{
    struct kk_err err = {0};
    struct kk_kv *fork;
    KK_ASSERT_OK(kk_kv_fork(r->kv[0], &fork, &err), &err);
    kk_kv_close(*parent);
    *parent = r->kv[0];
    r->kv[0] = fork;
}

/* ---- what a session's shared blocks are kept in, and its own bytes ---- */

enum { BLOCKS = 4000 };
static uint64_t numbers;     /* given to blocks so far */
static int64_t shared_again; /* blocks */

struct store {
    struct {
        size_t bytes;
        void *data;
    } block[BLOCKS + 1];       /* by number */
    uint64_t named[2][BLOCKS]; /* of a session, in order */
    int n_named[2], next, session;
    struct kk_buf own[2];
    size_t at;
};

static int keep_block(void *arg, struct kk_kv_kept *b, void **into, struct kk_err *err)
{
    struct store *k = arg;
    (void)err;
    if (b->sole && !(b->number && k->block[b->number].data)) return KK_ENOENT;
    if (!b->number) b->number = ++numbers;
    assert_in_range(b->number, 1, BLOCKS);
    *into = NULL;
    if (!k->block[b->number].data) {
        k->block[b->number].data = *into = kk_malloc(b->bytes);
        k->block[b->number].bytes = b->bytes;
    }
    assert_int_equal(k->block[b->number].bytes, b->bytes);
    k->named[k->session][k->n_named[k->session]++] = b->number;
    return 0;
}

static int next_block(void *arg, struct kk_kv_kept *b, struct kk_err *err)
{
    struct store *k = arg;
    (void)err;
    assert_true(k->next < k->n_named[k->session]);
    const uint64_t number = k->named[k->session][k->next++];
    *b = (struct kk_kv_kept){.number = number, .bytes = k->block[number].bytes};
    return 0;
}

static int fetch_block(void *arg, const struct kk_kv_kept *b, void *room, const void **from,
                       struct kk_err *err)
{
    const struct store *k = arg;
    (void)err;
    memcpy(room, k->block[b->number].data, b->bytes);
    *from = room;
    return 0;
}

static int to_own(void *arg, void *p, size_t n, struct kk_err *err)
{
    struct store *k = arg;
    (void)err;
    return kk_buf_append(&k->own[k->session], p, n);
}

static int from_own(void *arg, void *p, size_t n, struct kk_err *err)
{
    struct store *k = arg;
    (void)err;
    assert_true(n <= k->own[k->session].len - k->at);
    memcpy(p, k->own[k->session].data + k->at, n);
    k->at += n;
    return 0;
}

/* A session and the fork of it leave the device together, and come back: one copy of what they
 * share, and no more bytes than before. */
static void out_and_back(struct run *r, struct kk_kv **parent)
{
    struct store *k = kk_calloc(1, sizeof *k);
    const struct kk_kv_keeper keeper = {keep_block, next_block, fetch_block, k};
    const struct kk_io sink = {to_own, k}, source = {from_own, k};
    struct kk_kv **kv[2] = {&r->kv[0], parent};
    struct kk_err err = {0};
    int64_t rows[2], after;
    int64_t before = kk_kv_shared_bytes(r->pool) + kk_kv_pool_host_bytes(r->pool);
    for (int i = 0; i < 2; i++) before += kk_kv_device_bytes(*kv[i]);
    for (k->session = 0; k->session < 2; k->session++) {
        kk_buf_init(&k->own[k->session], 1 << 26);
        rows[k->session] = kk_kv_rows(*kv[k->session]);
        KK_ASSERT_OK(kk_kv_save_shared(*kv[k->session], &sink, &keeper, &err), &err);
    }
    for (int i = 0; i < 2; i++) kk_kv_close(*kv[i]);
    assert_int_equal(kk_kv_shared_bytes(r->pool), 0);
    for (k->session = 1; k->session >= 0; k->session--) {
        k->next = 0;
        k->at = 0;
        KK_ASSERT_OK(kk_kv_open_empty(r->pool, kv[k->session], &err), &err);
        KK_ASSERT_OK(kk_kv_load_shared(*kv[k->session], rows[k->session], &source, &keeper, &err),
                     &err);
        assert_int_equal(k->at, k->own[k->session].len);
        KK_ASSERT_OK(kk_kv_check(*kv[k->session], &err), &err);
    }
    after = kk_kv_shared_bytes(r->pool) + kk_kv_pool_host_bytes(r->pool);
    for (int i = 0; i < 2; i++) after += kk_kv_device_bytes(*kv[i]);
    assert_true(after <= before);
    shared_again += k->n_named[0];
    for (uint64_t i = 1; i <= numbers; i++) kk_free(k->block[i].data);
    for (int i = 0; i < 2; i++) kk_buf_release(&k->own[i]);
    kk_free(k);
}

/* Both sessions to TOKENS rows, in chunks, blocks that are partly kept, and both at once. */
static float *run(const struct kk_ops *ops, int64_t cap, int slots, size_t *count)
{
    struct run r;
    open_run(&r, ops, cap, slots);
    float *out = kk_calloc((size_t)TOKENS * 2 * (size_t)r.V, sizeof *out);
    struct kk_kv *parent = NULL;
    size_t at = 0;
    for (int i = 0; kk_kv_rows(r.kv[0]) < TOKENS && kk_kv_rows(r.kv[1]) < TOKENS; i++, at += 2) {
        const int kind = i % 3;
        const int32_t n[2] = {kind == 0 ? 60 : 9, kind == 0 ? 36 : kind == 1 ? 80 : 16};
        const uint8_t hold[2] = {kind != 0, kind == 2};
        const int32_t keep[2] = {kind == 0 ? 60 : 5, kind == 2 ? 11 : n[1]};
        if (i % 4 == 2) fork_one(&r, &parent);
        if (ops && i % 4 > 1 && parent && i % 3) out_and_back(&r, &parent);
        step(&r, n, hold, keep, out + at * (size_t)r.V);
    }
    if (cap) assert_true(kk_kv_pool_host_bytes(r.pool) > 0 && kk_kv_host_bytes(r.kv[1]) > 0);
    *count = at * (size_t)r.V;
    kk_kv_close(parent);
    close_run(&r);
    return out;
}

static void the_same_bits_as_on_the_host(void **state)
{
    (void)state;
    struct kk_dev *cpu;
    struct kk_err err = {0};
    KK_ASSERT_OK(kk_dev_open_cpu("auto", 1, &cpu, &err), &err);
    struct kk_ops ops = *cpu->ops;
    kk_dev_close(cpu);
    ops.stage = stage;
    ops.stage_wait = stage_wait;
    size_t n, n2;
    float *want = run(NULL, 0, 4, &n);
    assert_true(n > 0 && want[n - 1] == want[n - 1]);
    static const struct {
        int64_t cap;
        int slots;
    } cases[] = {{0, 4}, {160000, 2}, {160000, 5}, {160000, 64}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        engine.batches = engine.waits = engine.head = engine.tail = 0;
        shared_again = 0;
        float *got = run(&ops, cases[i].cap, cases[i].slots, &n2);
        assert_int_equal(n, n2);
        assert_memory_equal(want, got, n * sizeof *want);
        assert_true(shared_again > 10);
        assert_true(cases[i].cap ? engine.batches > 10 && engine.waits > 10 : !engine.batches);
        kk_free(got);
    }
    kk_free(want);
}

/* A device that takes some heads and widths only says so before anything is loaded. */
static void test_geometry(void **state)
{
    const struct kk_model_limits limits = {.max_rows = 8, .max_logit_rows = 1, .positions = 8};
    struct kk_model_file *mf;
    struct kk_model_plan plan;
    struct kk_model *m = NULL;
    struct kk_dev *dev;
    struct kk_err err = {0};
    (void)state;
    KK_ASSERT_OK(kk_dev_open_cpu("scalar", 1, &dev, &err), &err);
    KK_ASSERT_OK(kk_model_file_open("synth:tests/data/mini.json", &mf, &err), &err);
    dev->head_unit = 16;
    dev->head_most = 512;
    KK_ASSERT_FAILS(kk_model_open(mf, dev, &limits, NULL, &m, &err), KK_EUNSUPPORTED, &err,
                    "heads of 24: cpu scalar, 1 thread takes multiples of 16 up to 512");
    dev->head_unit = 8;
    dev->head_most = 16;
    KK_ASSERT_FAILS(kk_model_plan(mf, dev, &limits, &plan, NULL, &err), KK_EUNSUPPORTED, &err,
                    "heads of 24");
    dev->head_most = 24;
    dev->width_most = 32;
    KK_ASSERT_FAILS(kk_model_plan(mf, dev, &limits, &plan, NULL, &err), KK_EUNSUPPORTED, &err,
                    "takes 32 at most");
    dev->width_most = 1024;
    KK_ASSERT_OK(kk_model_plan(mf, dev, &limits, &plan, NULL, &err), &err);
    assert_null(m);
    kk_model_file_close(mf);
    kk_dev_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_geometry),
                                       cmocka_unit_test(the_same_bits_as_on_the_host)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

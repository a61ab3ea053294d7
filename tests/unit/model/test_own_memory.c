/* KV on a device with memory of its own: block tables that travel with the step, and a host tier
 * that comes back by the device's copy engine. The device here is the CPU that says it is such a
 * one, with an engine that copies as late as it may and spoils a slot as early as it may. */
#include "kk_test.h"

#include <stdio.h>

#include "base/mem.h"
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
        float *got = run(&ops, cases[i].cap, cases[i].slots, &n2);
        assert_int_equal(n, n2);
        assert_memory_equal(want, got, n * sizeof *want);
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
    KK_ASSERT_FAILS(kk_model_plan(mf, dev, &limits, &plan, &err), KK_EUNSUPPORTED, &err,
                    "heads of 24");
    dev->head_most = 24;
    dev->width_most = 32;
    KK_ASSERT_FAILS(kk_model_plan(mf, dev, &limits, &plan, &err), KK_EUNSUPPORTED, &err,
                    "takes 32 at most");
    dev->width_most = 1024;
    KK_ASSERT_OK(kk_model_plan(mf, dev, &limits, &plan, &err), &err);
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

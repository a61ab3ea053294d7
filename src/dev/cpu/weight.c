/* Repacking weights into panels of 16 outputs (kern_int.h), and reading embedding rows back out. */
#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "dev/cpu/cpu_int.h"

static size_t mat_bytes(enum kk_dtype t, int64_t rows, int64_t cols)
{
    return (size_t)kk_cpu_panels(rows) * kk_panel_bytes(t, cols);
}

size_t kk__cpu_weight_bytes(const struct kk_dev *d, const struct kk_weight_src *s)
{
    (void)d;
    return mat_bytes(s->dtype, s->rows, s->cols) * (size_t)s->n_mats;
}

/* 16 rows (n of them real) of 32-bit words to words[k][16]; the rest stays zero. */
static void pack_words(const uint32_t *const row[16], int n, int64_t words, uint32_t *dst)
{
    for (int64_t k0 = 0; k0 < words; k0 += 16) {
        int64_t k1 = k0 + 16 < words ? k0 + 16 : words;
        for (int l = 0; l < n; l++)
            for (int64_t k = k0; k < k1; k++) memcpy(&dst[k * KK_LANES + l], &row[l][k], 4);
    }
}

static void pack_halves(const uint16_t *const row[16], int n, int64_t cols, uint16_t *dst)
{
    for (int l = 0; l < n; l++)
        for (int64_t k = 0; k < cols; k++) dst[k * KK_LANES + l] = row[l][k];
}

/* bf16 pairs of an odd row end with a zero weight. */
static void pack_odd_pair(const uint16_t *const row[16], int n, int64_t cols, uint16_t *dst)
{
    for (int l = 0; l < n; l++) dst[(cols / 2 * KK_LANES + l) * 2] = row[l][cols - 1];
}

struct pack_job {
    const struct kk_weight_src *src;
    struct kk_weight *w;
    _Atomic int64_t next;
    _Atomic int failed;
};

static void pack_panel(const struct pack_job *job, int64_t item, char *tmp)
{
    const struct kk_weight_src *s = job->src;
    int64_t per = kk_cpu_panels(s->rows), m = item / per, p = item % per, first = p * KK_LANES;
    int n = (int)(s->rows - first < KK_LANES ? s->rows - first : KK_LANES);
    size_t row_bytes = (size_t)s->cols * kk_dtype_bytes(s->dtype);
    uint64_t at = ((uint64_t)m * (uint64_t)s->rows + (uint64_t)first) * (uint64_t)s->cols;
    const char *from = tmp;
    if (s->data)
        from = (const char *)s->data + at * kk_dtype_bytes(s->dtype);
    else
        s->read(s->ctx, at, (uint64_t)n * (uint64_t)s->cols, tmp);
    const void *row[KK_LANES] = {NULL};
    for (int l = 0; l < n; l++) row[l] = from + (size_t)l * row_bytes;
    char *dst = (char *)job->w->data + (size_t)m * job->w->mat_bytes +
                (size_t)p * kk_panel_bytes(s->dtype, s->cols);
    if (s->dtype == KK_F16) {
        pack_halves((const uint16_t *const *)row, n, s->cols, (uint16_t *)(void *)dst);
    } else if (s->dtype == KK_F32) {
        pack_words((const uint32_t *const *)row, n, s->cols, (uint32_t *)(void *)dst);
    } else {
        pack_words((const uint32_t *const *)row, n, s->cols / 2, (uint32_t *)(void *)dst);
        if (s->cols % 2)
            pack_odd_pair((const uint16_t *const *)row, n, s->cols, (uint16_t *)(void *)dst);
    }
}

static void pack_worker(void *arg, int worker, int n)
{
    struct pack_job *job = arg;
    const struct kk_weight_src *s = job->src;
    int64_t total = kk_cpu_panels(s->rows) * s->n_mats, item;
    size_t tmp_bytes = (size_t)s->cols * KK_LANES * kk_dtype_bytes(s->dtype);
    char *tmp = s->data ? NULL : kk_malloc(tmp_bytes);
    (void)worker;
    (void)n;
    if (!s->data && !tmp) {
        atomic_store(&job->failed, 1);
        return;
    }
    while ((item = atomic_fetch_add(&job->next, 1)) < total) pack_panel(job, item, tmp);
    kk_free(tmp);
}

int kk__cpu_weight_load(struct kk_dev *d, const struct kk_weight_src *s, struct kk_account *acc,
                        struct kk_weight *out, struct kk_err *err)
{
    struct kk_cpu *c = kk_cpu_of(d);
    struct kk_weight w = {.dtype = s->dtype,
                          .n_mats = s->n_mats,
                          .rows = s->rows,
                          .cols = s->cols,
                          .mat_bytes = mat_bytes(s->dtype, s->rows, s->cols),
                          .account = acc};
    int rc = kk_dev_alloc(d, acc, w.mat_bytes * (size_t)w.n_mats, &w.data, err);
    if (rc) return rc;
    struct pack_job job = {.src = s, .w = &w};
    kk_pool_run(c->pool, pack_worker, &job);
    if (atomic_load(&job.failed)) {
        kk_weight_free(d, &w);
        return kk_fail(err, KK_ENOMEM, "out of memory packing weights");
    }
    *out = w;
    return 0;
}

/* Row `id` of a table, unpacked, times scale. */
static void unpack_row(const struct kk_weight *w, int64_t id, float scale, float *h)
{
    const char *p = kk_cpu_panel(w, 0, id / KK_LANES);
    const uint16_t *half = (const uint16_t *)(const void *)p;
    int64_t lane = id % KK_LANES;
    for (int64_t k = 0; k < w->cols; k++) {
        float v;
        if (w->dtype == KK_F32)
            v = ((const float *)(const void *)p)[k * KK_LANES + lane];
        else if (w->dtype == KK_F16)
            v = kk_f16_to_f32(half[k * KK_LANES + lane]);
        else
            v = kk_bf16_to_f32(half[(k / 2 * KK_LANES + lane) * 2 + k % 2]);
        h[k] = v * scale;
    }
}

static void embed_worker(void *arg, int worker, int n)
{
    const struct kk_embed_args *a = arg;
    int64_t first, end;
    kk__cpu_range(a->T, 1, worker, n, &first, &end);
    for (int64_t t = first; t < end; t++)
        if (a->ids[t] >= 0 && a->ids[t] < a->table->rows)
            unpack_row(a->table, a->ids[t], a->scale, a->h + t * a->table->cols);
}

void kk__cpu_embed(struct kk_dev *d, const struct kk_embed_args *a)
{
    struct kk_cpu *c = kk_cpu_of(d);
    for (int t = 0; t < a->T; t++)
        if (a->ids[t] < 0 || a->ids[t] >= a->table->rows)
            kk__cpu_latch(c, "embed: id %d of %lld rows", a->ids[t], (long long)a->table->rows);
    if (a->T < 8)
        embed_worker((void *)(size_t)a, 0, 1);
    else
        kk_pool_run(c->pool, embed_worker, (void *)(size_t)a);
}

/* The persistent decode step, host side: which geometry it takes, an SM's program, and what a step
 * is told. docs/adr/0024. */
#include <string.h>

#include "dev/cuda/step_int.h"

enum {
    PAIRS = 1024,         /* most (split, row) pairs of a layer: 64 KB each */
    SPLIT_BYTES = 131072, /* of one KV head's split */
    MAX_SMS = 256,
    DIAG_BYTES = MAX_SMS * (KS_THREADS / 32) * 8,
};

struct ks_stack {
    struct ks_args args; /* all but what changes from step to step */
    int sms, n_layers;
    struct kk_account *account;
    char *memory;
    size_t bytes;
    uint32_t step, pages; /* so far */
    int *diag;            /* host memory: see stuck() in step.cu */
};

/* ---- geometry ---- */

static bool layer_fits(const struct kk_stack_layer *y)
{
    if (y->sliding) return y->D == 256 && y->G == 8 && y->R == 128 && !y->value_only;
    return y->D == 512 && y->G == 2 && y->R == 64 && y->value_only;
}

static bool fits(const struct kk_cuda *c, const struct kk_stack *s)
{
    if (s->C != KS_C || s->H != KS_H || s->E != KS_E || s->A != KS_A || s->act != KK_GELU_TANH)
        return false;
    if (s->F != KS_F || s->expert_F != KS_XF || s->V % KK_TILE_ROWS || s->V < 8) return false;
    if (s->n_layers < 1 || s->n_layers >= KS_LAYERS || c->sms < 128 || c->sms > MAX_SMS)
        return false;
    for (int l = 0; l < s->n_layers; l++)
        if (!layer_fits(&s->layer[l])) return false;
    return true;
}

/* ---- what an SM does ---- */

struct program {
    struct ks_layer *layer; /* [sms][n + 1] */
    int n, sms;
    double load[MAX_SMS]; /* bytes so far */
};

static struct ks_layer *layer_of(struct program *p, int sm, int l)
{
    return p->layer + (size_t)sm * (p->n + 1) + l;
}

/* SMs by bytes so far, fewest first */
static void by_load(const struct program *p, int *order)
{
    for (int i = 0; i < p->sms; i++) {
        int j = i;
        for (; j > 0 && p->load[order[j - 1]] > p->load[i] + 1; j--) order[j] = order[j - 1];
        order[j] = i;
    }
}

/* `units` over the SMs in runs; what does not divide goes to those that have had the fewest bytes.
 * field: of struct ks_layer, where an SM's run goes. */
static void share(struct program *p, int l, uint32_t ks_layer::*field, int units, double bytes)
{
    int order[MAX_SMS], n[MAX_SMS];
    by_load(p, order);
    for (int i = 0; i < p->sms; i++) n[i] = units / p->sms;
    for (int i = 0; i < units % p->sms; i++) n[order[i]]++;
    for (int i = 0, first = 0; i < p->sms; first += n[i++]) {
        layer_of(p, i, l)->*field = (uint32_t)(first | n[i] << 16);
        p->load[i] += n[i] * bytes;
    }
}

/* Experts' gated units are shared when the experts are known; an SM's rank is such that at KS_A
 * experts the larger shares fall to those with the fewest bytes. */
static void rank_experts(struct program *p, int l)
{
    const int N = KS_A * KS_XSTRIPES, sms = p->sms;
    int order[MAX_SMS], rank = 0;
    by_load(p, order);
    for (int large = 1; large >= 0; large--)
        for (int r = 0; r < sms; r++) {
            const int n = (int)((int64_t)(r + 1) * N / sms - (int64_t)r * N / sms);
            if ((n > N / sms) != large) continue;
            p->load[order[rank]] += n * 2.0 * KS_STRIPE;
            layer_of(p, order[rank++], l)->rank = (uint32_t)r;
        }
}

static uint64_t at(const void *p)
{
    return (uint64_t)p;
}

static struct ks_layer describe(const struct kk_stack *k, int l)
{
    const struct kk_stack_layer *y = &k->layer[l];
    struct ks_layer d = {};
    d.full = !y->sliding;
    d.scalar = y->scalar;
    d.wq = at(y->wq->data), d.wk = at(y->wk->data), d.wv = y->wv ? at(y->wv->data) : 0;
    d.wo = at(y->wo->data), d.w_router = at(y->router->data);
    d.gate = at(y->gate->data), d.up = at(y->up->data), d.w_down = at(y->down->data);
    d.gate_up = at(y->gate_up->data), d.expert_down = at(y->expert_down->data);
    d.q_norm = at(y->q_norm), d.k_norm = at(y->k_norm);
    d.post_attn = at(y->post_attn_norm), d.pre_ff = at(y->pre_ff_norm);
    d.pre_ff_2 = at(y->pre_ff_norm_2), d.router_scale = at(y->router_scale);
    d.post_ff_1 = at(y->post_ff_norm_1), d.post_ff_2 = at(y->post_ff_norm_2);
    d.post_ff = at(y->post_ff_norm), d.expert_scale = at(y->expert_scale);
    d.next_norm = at(l + 1 < k->n_layers ? y[1].input_norm : k->final_norm);
    return d;
}

static void plan_layer(struct program *p, const struct kk_stack *k, int l)
{
    const struct kk_stack_layer *y = &k->layer[l];
    const struct ks_layer d = describe(k, l);
    const int rows = (KS_H + y->G * (y->sliding ? 2 : 1)) * y->D;
    for (int i = 0; i < p->sms; i++) *layer_of(p, i, l) = d;
    share(p, l, &ks_layer::qkv, rows / KK_TILE_ROWS, KS_STRIPE);
    for (int i = 0; y->sliding && i < 64; i++) p->load[i] += SPLIT_BYTES;
    share(p, l, &ks_layer::o, KS_C / KK_TILE_ROWS, 16.0 * KS_H * y->D);
    share(p, l, &ks_layer::router, KS_E / KK_TILE_ROWS, KS_STRIPE);
    share(p, l, &ks_layer::glu, KS_F / KK_TILE_ROWS, 2.0 * KS_STRIPE);
    rank_experts(p, l);
    share(p, l, &ks_layer::down, KS_C / KK_TILE_ROWS, (3.0 + KS_A) * KS_SLOT);
}

static void plan(struct program *p, const struct kk_stack *k)
{
    for (int l = 0; l < p->n; l++) plan_layer(p, k, l);
    struct ks_layer head = {};
    head.wq = at(k->head->data);
    for (int i = 0; i < p->sms; i++) *layer_of(p, i, p->n) = head;
    share(p, p->n, &ks_layer::down, (int)(k->head->rows / KK_TILE_ROWS), KS_STRIPE);
}

/* ---- the stack ---- */

/* Words in one block of memory; with base NULL only counted. */
static size_t place_words(struct ks_args *a, char *base, int sms)
{
    size_t n = 0;
    struct {
        uint64_t **p;
        size_t words;
    } part[] = {
        {&a->qkv, (size_t)KS_COLS * KS_QKV},
        {&a->part_o, (size_t)PAIRS * KS_H * 512},
        {&a->part_ml, (size_t)PAIRS * KS_H * 2},
        {&a->attn, (size_t)KS_COLS * KS_H * 512 / 2},
        {&a->o, (size_t)KS_COLS * KS_C},
        {&a->router, (size_t)KS_COLS * KS_E},
        {&a->f, (size_t)KS_COLS * KS_F / 2},
        {&a->fx, (size_t)KS_UNION * KS_COLS * KS_XF / 2},
        {&a->down, (size_t)KS_COLS * KS_C},
        {&a->xdown, (size_t)KS_COLS * KS_C},
        {&a->x[0], (size_t)KS_COLS * KS_C / 2},
        {&a->x[1], (size_t)KS_COLS * KS_C / 2},
        {&a->x[2], (size_t)KS_COLS * KS_C / 2},
        {&a->x[3], (size_t)KS_COLS * KS_C / 2},
        {&a->best, (size_t)sms * KS_REDUCERS * KS_COLS * 2},
        {(uint64_t **)&a->pages.there, (size_t)KS_PAGE_SLOTS * KS_PAGE_UNITS / 2},
        {(uint64_t **)&a->pages.left, (size_t)KS_PAGE_SLOTS * KS_PAGE_HEADS / 2},
    };
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        if (base) *part[i].p = (uint64_t *)base + n;
        n += (part[i].words + 127) / 128 * 128;
    }
    return n * sizeof(uint64_t);
}

static size_t program_bytes(const struct kk_cuda *c, const struct kk_stack *k)
{
    return (size_t)c->sms * (k->n_layers + 1) * sizeof(struct ks_layer);
}

size_t kk__cuda_stack_bytes(const struct kk_dev *dev, const struct kk_stack *k)
{
    const struct kk_cuda *c = (const struct kk_cuda *)dev;
    struct ks_args a;
    return fits(c, k) ? place_words(&a, NULL, c->sms) + program_bytes(c, k) : 0;
}

/* The device's part of a stack: words, and the program behind them. */
static int place_stack(struct kk_dev *dev, struct ks_stack *s, const struct program *p,
                       const struct kk_stack *k, struct kk_err *err)
{
    struct ks_args *a = &s->args;
    const size_t prog = (size_t)p->sms * (p->n + 1) * sizeof *p->layer;
    const size_t words = place_words(a, NULL, p->sms);
    s->bytes = words + prog;
    int rc = kk_dev_alloc(dev, s->account, s->bytes, (void **)&s->memory, err);
    if (rc) return rc;
    place_words(a, s->memory, p->sms);
    a->layers = (const struct ks_layer *)(s->memory + words);
    dev->ops->upload(dev, s->memory + words, p->layer, prog);
    a->n_layers = s->n_layers = k->n_layers;
    a->window = 6, a->ahead = 2;
    a->eps = k->eps, a->attn_scale = k->attn_scale, a->softcap = k->softcap;
    a->table = (const char *)k->embed->data, a->embed_scale = k->embed_scale;
    a->first_norm = k->layer[0].input_norm;
    a->vocab = (int)k->V;
    for (int l = 0; l < k->n_layers; l++)
        if (!k->layer[l].sliding) a->pages.full |= (uint64_t)1 << l;
    s->sms = p->sms;
    s->diag = a->diag = (int *)dev->ops->host_alloc(dev, DIAG_BYTES);
    if (!s->diag) return kk_fail(err, KK_ENOMEM, "out of host memory for a decode step");
    memset(s->diag, 0, DIAG_BYTES);
    kk__cuda_latch(kk__cuda(dev), (cudaError_t)ks__open(), "stack_open");
    return 0;
}

int kk__cuda_stack_open(struct kk_dev *dev, const struct kk_stack *k, struct kk_account *account,
                        void **out, struct kk_err *err)
{
    struct kk_cuda *c = kk__cuda(dev);
    struct program p = {};
    *out = NULL;
    if (!fits(c, k)) return 0;
    p.sms = c->sms;
    p.n = k->n_layers;
    p.layer = (struct ks_layer *)kk_calloc(1, program_bytes(c, k));
    struct ks_stack *s = (struct ks_stack *)kk_calloc(1, sizeof *s);
    int rc = p.layer && s ? 0 : kk_fail(err, KK_ENOMEM, "out of memory for a decode step");
    if (!rc) {
        plan(&p, k);
        s->account = account;
        s->pages = 1; /* 0 is what was never there */
        rc = place_stack(dev, s, &p, k, err);
    }
    kk_free(p.layer);
    if (rc)
        kk__cuda_stack_close(dev, s);
    else
        *out = s;
    return rc;
}

void kk__cuda_stack_close(struct kk_dev *dev, void *stack)
{
    struct ks_stack *s = (struct ks_stack *)stack;
    if (!s) return;
    if (s->diag) dev->ops->host_free(dev, s->diag, DIAG_BYTES);
    if (s->memory) kk_dev_free(dev, s->account, s->memory, s->bytes);
    kk_free(s);
}

/* ---- a step ---- */

/* The splits that some row of q sees, as make_item in step.cu reads them */
static void splits_of(const struct ks_mask *m, const struct ks_seq *q, struct ks_splits *k)
{
    const int S = KK_CUDA_SPLIT, last = q->pos0 + q->n - 1;
    const int near = m->window < m->near ? m->window : m->near;
    int win = q->pos0 - near + 1, s0 = q->pos0 - m->window + 1;
    if (win < 0) win = 0;
    if (s0 < 0) s0 = 0;
    const int s1 = m->sinks < win ? m->sinks : win;
    k->win0 = win / S;
    k->n_sink = 0;
    if (s0 < s1) {
        /* sinks begin at the first split, or what the window leaves of it */
        const int end = (s1 - 1) / S + 1;
        k->n_sink = end < k->win0 ? end : k->win0;
    }
    k->n = k->n_sink + last / S + 1 - k->win0;
}

static bool step_rows(struct ks_args *a, const struct kk_stack_step *st)
{
    int t = 0, pairs[2] = {0, 0};
    for (int b = 0; b < st->B; b++) {
        struct ks_seq *q = &a->seq[b];
        q->t0 = t, q->n = st->rows[b], q->pos0 = st->pos[b];
        t += q->n;
        for (int k = 0; k < 2; k++) {
            splits_of(&a->mask[k], q, &q->kind[k]);
            q->kind[k].pair0 = pairs[k];
            pairs[k] += q->kind[k].n * q->n;
        }
    }
    return t == st->T && pairs[0] <= PAIRS && pairs[1] <= PAIRS;
}

/* docs/adr/0031: off until its last changes have run on a GPU */
static bool takes_pages()
{
#ifdef KK_CUDA_STEP_PAGES
    return true;
#else
    return false;
#endif
}

/* Pages of the step, each a split of a full layer; false: others are not taken. */
static bool step_pages(struct ks_args *a, const struct kk_stack_step *st)
{
    const struct kk_stack_host *h = st->host;
    struct ks_pages *p = &a->pages;
    p->slots = p->n = 0;
    for (int b = 0; b < st->B; p->n += a->seq[b++].pages.n)
        a->seq[b].pages = {h ? h->first[0][b] : 0, h ? h->count[0][b] : 0, p->n};
    if (!h) return true;
    if (!takes_pages()) return false;
    for (int b = 0; b < st->B; b++)
        if (h->count[1][b]) return false;
    if (h->slots > KS_PAGE_SLOTS || h->block_rows != KK_CUDA_SPLIT) return false;
    p->from = (const char *const *)h->from;
    p->ring = h->ring, p->slot_bytes = h->slot_bytes;
    p->slots = h->slots, p->slot0 = h->slot0;
    return true;
}

static void step_taps(struct ks_args *a, const struct kk_stack_step *st)
{
    memset(a->tap, -1, sizeof a->tap);
    for (int k = 0; k < 2; k++) {
        a->tap_dst[k] = st->n_taps[k] ? st->tap_dst[k] : NULL;
        a->tap_n[k] = st->n_taps[k];
        for (int i = 0; i < st->n_taps[k]; i++) a->tap[k][st->tap_layers[k][i]] = (int8_t)i;
    }
}

int kk__cuda_stack_step(struct kk_dev *dev, void *stack, const struct kk_stack_step *st)
{
    struct ks_stack *s = (struct ks_stack *)stack;
    struct kk_cuda *c = kk__cuda(dev);
    struct ks_args *a = &s->args;
    if (st->T < 1 || st->T > KS_ROWS || st->kv_dtype != KK_BF16 || !st->n_logits) return 1;
    for (int k = 0; k < 2; k++) {
        const struct kk_mask *m = &st->mask[k];
        if (m->ahead || m->exact_near) return 1;
        a->mask[k].window = m->window, a->mask[k].near = m->near, a->mask[k].sinks = m->sinks;
        a->rope[k] = st->rope[k];
    }
    if (!step_rows(a, st) || !step_pages(a, st)) return 1;
    a->pages.number = s->pages;
    s->pages += st->host ? (uint32_t)st->host->n : 0;
    a->T = st->T, a->B = st->B;
    a->ids = st->ids;
    a->fault = c->fault_dev;
    for (int l = 0; l < s->n_layers; l++) {
        a->kv[l].seqs = st->kv[l].seqs;
        a->kv[l].rows = (char *)st->kv[l].rows;
    }
    a->logits = st->logits, a->choice = st->choice, a->n_logits = st->n_logits;
    memset(a->logit_of, -1, sizeof a->logit_of);
    for (int i = 0; i < st->n_logits; i++) a->logit_of[st->logit_rows[i]] = (int8_t)i;
    step_taps(a, st);
    /* tags, or numbers of pages, begin again: none of old may be left */
    if (++s->step == UINT32_MAX / KS_LAYERS || s->pages > UINT32_MAX / 2) {
        kk__cuda_latch(
            c, cudaMemsetAsync(s->memory, 0, (size_t)((char *)a->layers - s->memory), c->stream),
            "stack_step");
        s->step = 1, s->pages = 1;
    }
    a->epoch = s->step * KS_LAYERS;
    kk__cuda_latch(c, (cudaError_t)ks__launch(a, s->sms, c->stream), "stack_step");
    return 0;
}

/* Where a step stood still, if one did: {what, extra} of each warp of each SM. */
const int *kk__cuda_stack_diag(const void *stack)
{
    return ((const struct ks_stack *)stack)->diag;
}

/* What the last step was told. */
struct ks_args *kk__cuda_stack_args(void *stack)
{
    return &((struct ks_stack *)stack)->args;
}

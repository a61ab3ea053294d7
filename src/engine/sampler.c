/* Choosing the next token from logits. Order, as in Hugging Face and vLLM: repetition penalty,
 * temperature, top-k, top-p, min-p, then one draw. The draw is Gumbel-max: the largest of logit / T
 * + g_i, with g_i keyed by (seed, position, i). So a token depends on nothing but its logits row,
 * its position and the seed, and a draft can be checked against it (DESIGN §5). */
#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "engine/engine_int.h"

struct kk_sampling kk_sampling_defaults(void)
{
    return (struct kk_sampling){.top_p = 1.0f, .repeat_penalty = 1.0f, .repeat_last_n = 64};
}

int kk__sampling_check(const struct kk_sampling *p, struct kk_err *err)
{
    if (!(p->temperature >= 0 && p->temperature <= 100))
        return kk_fail(err, KK_EINVAL, "temperature %g: must be 0 to 100", (double)p->temperature);
    if (p->top_k < 0) return kk_fail(err, KK_EINVAL, "top-k %d: must be >= 0", p->top_k);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return kk_fail(err, KK_EINVAL, "top-p %g: must be over 0, at most 1", (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return kk_fail(err, KK_EINVAL, "min-p %g: must be 0 to 1", (double)p->min_p);
    if (!(p->repeat_penalty > 0 && p->repeat_penalty <= 100))
        return kk_fail(err, KK_EINVAL, "repeat-penalty %g: must be over 0, at most 100",
                       (double)p->repeat_penalty);
    if (p->repeat_last_n < 0)
        return kk_fail(err, KK_EINVAL, "repeat-last-n %d: must be >= 0", p->repeat_last_n);
    return 0;
}

/* Keskar et al. 2019, arXiv:1909.05858: each token seen is penalised once, however often it came.
 */
static void penalise(const struct kk_sampling *p, float *logits, const uint32_t *history, size_t n)
{
    size_t look = p->repeat_last_n && (size_t)p->repeat_last_n < n ? (size_t)p->repeat_last_n : n;
    const uint32_t *last = history + n - look;
    if (p->repeat_penalty == 1.0f) return;
    for (size_t i = 0; i < look; i++) {
        size_t j = 0;
        while (last[j] != last[i]) j++;
        if (j < i) continue; /* done at its first place */
        float *x = &logits[last[i]];
        *x = *x > 0 ? *x / p->repeat_penalty : *x * p->repeat_penalty;
    }
}

static uint32_t greedy(const float *logits, int V)
{
    int best = 0;
    for (int i = 1; i < V; i++)
        if (logits[i] > logits[best]) best = i;
    return (uint32_t)best;
}

/* Descending by logit, then ascending by id: a total order. */
static int by_logit(const void *a, const void *b)
{
    const struct kk_candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Length of the shortest prefix of the sorted c whose probability reaches top_p, at least 1. */
static int cut_top_p(const struct kk_candidate *c, int n, float top_p)
{
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++) total += exp((double)c[i].logit - (double)c[0].logit);
    for (int i = 0; i < n; i++) {
        sum += exp((double)c[i].logit - (double)c[0].logit);
        if (sum >= (double)top_p * total) return i + 1;
    }
    return n;
}

/* Sorted candidates that pass top-k, top-p and min-p; logits already divided by the temperature. */
static int filter(const struct kk_sampling *p, struct kk_candidate *c, int n)
{
    qsort(c, (size_t)n, sizeof *c, by_logit);
    if (p->top_k && p->top_k < n) n = p->top_k;
    if (p->top_p < 1) n = cut_top_p(c, n, p->top_p);
    if (p->min_p > 0) {
        double least = (double)c[0].logit + log((double)p->min_p);
        while (n > 1 && (double)c[n - 1].logit < least) n--;
    }
    return n;
}

/* Standard Gumbel noise of candidate `id` at position pos. */
static double gumbel(uint64_t seed, uint64_t pos, uint32_t id)
{
    uint64_t key = kk_mix64(seed ^ kk_mix64(pos + 0x6b616b657961u));
    double u = kk_unit(kk_rng_at(key, id)) + 0x1p-54; /* in (0, 1) */
    return -log(-log(u));
}

uint32_t kk__sample(const struct kk_sampling *p, float *logits, int V, const uint32_t *history,
                    size_t n_history, uint64_t pos, struct kk_candidate *c)
{
    penalise(p, logits, history, n_history);
    if (p->temperature == 0) return greedy(logits, V);
    for (int i = 0; i < V; i++)
        c[i] = (struct kk_candidate){logits[i] / p->temperature, (uint32_t)i};
    int n = V;
    if (p->top_k || p->top_p < 1 || p->min_p > 0) n = filter(p, c, V);
    int best = 0;
    double best_score = -INFINITY;
    for (int i = 0; i < n; i++) {
        double score = (double)c[i].logit + gumbel(p->seed, pos, c[i].id);
        if (score > best_score || (score == best_score && c[i].id < c[best].id)) {
            best = i;
            best_score = score;
        }
    }
    return c[best].id;
}

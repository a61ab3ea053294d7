/* Greedy tokens come without logits where the device chooses: they are the largest of the logits
 * that the same history has, drafted or not, beside a session that samples or not; and no memory is
 * taken for logits before someone asks for them. */
#include "kk_test.h"

#include <stdio.h>

#include "engine/engine_int.h"

#define MODEL "synth:tests/data/mini.json:5"
enum { N = 40, MADE = 30, V = 160 };

static struct kk_engine *open_engine(const char *act, const char *draft, int threads)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_engine *e = NULL;
    struct kk_err err = {0};
    o.model = MODEL;
    o.act = act;
    o.draft = draft;
    o.draft_width = strcmp(draft, "none") ? 5 : 0;
    o.threads = threads;
    KK_ASSERT_OK(kk_engine_open(&o, &e, &err), &err);
    return e;
}

static struct kk_session *open_session(struct kk_engine *e)
{
    struct kk_session *s = NULL;
    struct kk_err err = {0};
    uint32_t ids[N];
    for (uint32_t i = 0; i < N; i++) ids[i] = (i * 41 + i * i * 3 + 7) % V;
    KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
    KK_ASSERT_OK(kk_session_append(s, ids, N, &err), &err);
    return s;
}

static int64_t scratch_of(const struct kk_engine *e)
{
    struct kk_engine_info info;
    kk_engine_describe(e, &info);
    return info.scratch_bytes;
}

/* The greedy continuation, and the whole history in ids. */
static void generate(struct kk_engine *e, float temperature, uint32_t ids[N + MADE])
{
    struct kk_session *s = open_session(e);
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_err err = {0};
    size_t n;
    p.ignore_eos = 1;
    p.temperature = temperature;
    KK_ASSERT_OK(kk_session_generate(s, &p, MADE, NULL, NULL, NULL, &err), &err);
    memcpy(ids, kk_session_history(s, &n), sizeof *ids * (N + MADE));
    assert_int_equal(n, N + MADE);
    kk_session_close(s);
}

static int is_largest(void *arg, int64_t position, const float *logits)
{
    const uint32_t *ids = arg;
    uint32_t best = 0;
    for (uint32_t i = 1; i < V; i++)
        if (logits[i] > logits[best]) best = i;
    if (position >= N - 1 && position + 1 < N + MADE) assert_int_equal(ids[position + 1], best);
    return 0;
}

static void tokens_are_the_largest_logits(void **state)
{
    (void)state;
    static const char *const acts[] = {"auto", "bf16"}, *const drafts[] = {"none", "wrong"};
    for (int k = 0; k < 8; k++) {
        struct kk_engine *e = open_engine(acts[k & 1], drafts[k >> 1 & 1], 1 + (k >> 2));
        struct kk_session *s = NULL;
        struct kk_err err = {0};
        uint32_t ids[N + MADE];
        generate(e, 0, ids);
        KK_ASSERT_OK(kk_session_open(e, &s, &err), &err);
        KK_ASSERT_OK(kk_session_logits(s, ids, N + MADE, is_largest, ids, &err), &err);
        kk_session_close(s);
        kk_engine_close(e);
    }
}

static void logits_take_memory_when_asked_for(void **state)
{
    (void)state;
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_plan plan;
    struct kk_err err = {0};
    uint32_t ids[3][N + MADE];
    o.model = MODEL;
    o.threads = 1;
    KK_ASSERT_OK(kk_plan_make(&o, 200, 1, &plan, &err), &err);
    struct kk_engine *e = open_engine("auto", "none", 1);
    assert_true(plan.logits_bytes >= (int64_t)(16 * V * sizeof(float)));
    generate(e, 0, ids[0]);
    assert_int_equal(scratch_of(e), plan.scratch_bytes);
    generate(e, 1, ids[1]);
    assert_int_equal(scratch_of(e), plan.scratch_bytes + plan.logits_bytes);
    assert_true(memcmp(ids[0], ids[1], sizeof ids[0]));
    generate(e, 0, ids[2]);
    assert_memory_equal(ids[0], ids[2], sizeof ids[0]);
    assert_int_equal(scratch_of(e), plan.scratch_bytes + plan.logits_bytes);
    kk_engine_close(e);
}

static int keep(struct kk_turn *t, uint32_t id)
{
    uint32_t **at = t->arg;
    *(*at)++ = id;
    return 0;
}

/* A round of a greedy session, one that samples, and one whose logits are penalised. */
static void company_of_samplers_changes_nothing(void **state)
{
    (void)state;
    enum { B = 3 };
    struct kk_engine *e = open_engine("auto", "none", 2);
    struct kk_sampling p[B];
    uint32_t alone[B][MADE], together[B][MADE], *at[B];
    struct kk_err err = {0};
    for (int b = 0; b < B; b++) {
        p[b] = kk_sampling_defaults();
        p[b].ignore_eos = 1;
    }
    p[1].temperature = 1;
    p[2].repeat_penalty = 1.5f;
    for (int round = 0; round < 2; round++) { /* each alone, then all together */
        struct kk_session *s[B];
        for (int b = 0; b < B; b++) {
            s[b] = open_session(e);
            at[b] = round ? together[b] : alone[b];
        }
        for (int i = 0; i < MADE; i++) {
            struct kk_turn t[B];
            for (int b = 0; b < B; b++)
                t[b] =
                    (struct kk_turn){.s = s[b], .p = &p[b], .most = 1, .emit = keep, .arg = &at[b]};
            for (int b = 0; b < B; b += round ? B : 1)
                KK_ASSERT_OK(kk__round(e, t + b, round ? B : 1, &err), &err);
        }
        for (int b = 0; b < B; b++) kk_session_close(s[b]);
    }
    assert_memory_equal(alone, together, sizeof alone);
    assert_true(memcmp(alone[0], alone[1], sizeof alone[0]));
    assert_true(memcmp(alone[0], alone[2], sizeof alone[0]));
    kk_engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_the_largest_logits),
        cmocka_unit_test(logits_take_memory_when_asked_for),
        cmocka_unit_test(company_of_samplers_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

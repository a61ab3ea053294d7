#include "kk_test.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/rng.h"

uint64_t kk_test_seed(void)
{
    static int known;
    static uint64_t seed = 1;
    if (known) return seed;
    const char *s = getenv("KK_TEST_SEED");
    if (s && *s) seed = strtoull(s, NULL, 0);
    known = 1;
    printf("KK_TEST_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

struct kk_test_rng kk_test_rng(const char *name)
{
    return (struct kk_test_rng){kk_mix64(kk_test_seed()) ^ kk_fnv1a(name, strlen(name)), 0};
}

uint64_t kk_test_u64(struct kk_test_rng *r)
{
    return kk_rng_at(r->key, r->at++);
}

uint32_t kk_test_below(struct kk_test_rng *r, uint32_t n)
{
    return (uint32_t)((kk_test_u64(r) >> 32) * n >> 32);
}

int kk_test_between(struct kk_test_rng *r, int lo, int hi)
{
    return lo + (int)kk_test_below(r, (uint32_t)(hi - lo) + 1);
}

float kk_test_uniform(struct kk_test_rng *r, float lo, float hi)
{
    return (float)(lo + ((double)hi - lo) * kk_unit(kk_test_u64(r)));
}

float kk_test_normal(struct kk_test_rng *r)
{
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += kk_unit(kk_test_u64(r));
    return (float)sum;
}

void kk_test_fill_normal(struct kk_test_rng *r, float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++) x[i] = scale * kk_test_normal(r);
}

static char tmpdir[256];

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *f)
{
    (void)st, (void)flag, (void)f;
    return remove(path);
}

void kk_test_remove(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void remove_tmpdir(void)
{
    nftw(tmpdir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

const char *kk_test_tmpdir(void)
{
    if (tmpdir[0]) return tmpdir;
    const char *base = getenv("TMPDIR");
    int n = snprintf(tmpdir, sizeof tmpdir, "%s/kk-test-XXXXXX", base && *base ? base : P_tmpdir);
    if (n < 0 || (size_t)n >= sizeof tmpdir || !mkdtemp(tmpdir)) {
        tmpdir[0] = 0;
        fail_msg("cannot make a temporary directory");
    }
    atexit(remove_tmpdir);
    return tmpdir;
}

const char *kk_test_path(const char *name)
{
    static char path[8][512];
    static unsigned turn;
    char *p = path[turn++ % 8];
    int n = snprintf(p, sizeof path[0], "%s/%s", kk_test_tmpdir(), name);
    assert_true(n > 0 && (size_t)n < sizeof path[0]);
    return p;
}

const char *kk_test_file(const char *name, const void *data, size_t len)
{
    const char *path = kk_test_path(name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
    return path;
}

double kk_test_rel_err(const float *a, const float *b, size_t n, double floor)
{
    double diff = 0, scale = floor;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(a[i]) || !isfinite(b[i])) return INFINITY;
        diff = fmax(diff, fabs((double)a[i] - b[i]));
        scale = fmax(scale, fabs(b[i]));
    }
    return diff / scale;
}

/* The order of floats as integers: negative ones are mirrored below zero. */
static int64_t float_rank(float f)
{
    int32_t i;
    memcpy(&i, &f, 4);
    return i >= 0 ? i : -(int64_t)(i & 0x7fffffff);
}

uint32_t kk_test_ulps(float a, float b)
{
    if (isnan(a) || isnan(b)) return UINT32_MAX;
    int64_t d = float_rank(a) - float_rank(b);
    return (uint32_t)(d < 0 ? -d : d);
}

/* Device memory of the CPU: what is given is zeroed and nobody else's, of every size, in any order
 * of taking and giving back; when all is back, so are the slabs. */
#include "kk_test.h"

#include <stdio.h>

#include "base/mem.h"
#include "dev/cpu/cpu_int.h"

enum { BLOCKS = 300, ROUNDS = 6000 };

struct block {
    unsigned char *p;
    size_t bytes;
    unsigned char mark;
};

static struct kk_test_rng rng;
static struct kk_account account = {.name = "test"};

static int is_all(const unsigned char *p, size_t n, unsigned char x)
{
    return p[0] == x && !memcmp(p, p + 1, n - 1);
}

static void take(struct kk_dev *d, struct block *b)
{
    static const size_t sizes[] = {100,    8 << 10,         16 << 10,  32 << 10,
                                   98304,  (98304 / 3) + 2, 128 << 10, 256 << 10,
                                   300000, (256 << 10) + 1, 2 << 20};
    struct kk_err err = {0};
    b->bytes = sizes[kk_test_below(&rng, sizeof sizes / sizeof *sizes)];
    if (b->bytes > 200000 && kk_test_below(&rng, 4)) b->bytes = 32 << 10;
    KK_ASSERT_OK(kk_dev_alloc(d, &account, b->bytes, (void **)&b->p, &err), &err);
    assert_int_equal((uintptr_t)b->p % 64, 0);
    assert_true(is_all(b->p, b->bytes, 0));
    b->mark = (unsigned char)(1 + kk_test_below(&rng, 255));
    memset(b->p, b->mark, b->bytes);
}

static void give(struct kk_dev *d, struct block *b)
{
    assert_true(is_all(b->p, b->bytes, b->mark));
    kk_dev_free(d, &account, b->p, b->bytes);
    b->p = NULL;
}

static int has_slabs(struct kk_dev *d)
{
    return kk__cpu(d)->slabs != NULL;
}

static void memory_is_zeroed_and_apart(void **state)
{
    (void)state;
    struct kk_dev *d = NULL;
    struct kk_err err = {0};
    static struct block b[BLOCKS];
    KK_ASSERT_OK(kk_dev_open_cpu("scalar", 1, &d, &err), &err);
    for (int i = 0; i < ROUNDS; i++) {
        struct block *x = &b[kk_test_below(&rng, BLOCKS)];
        if (x->p)
            give(d, x);
        else if (kk_test_below(&rng, ROUNDS) > (uint32_t)i / 2) /* fewer and fewer */
            take(d, x);
    }
    assert_true(has_slabs(d));
    for (int i = 0; i < BLOCKS; i++)
        if (b[i].p) give(d, &b[i]);
    assert_false(has_slabs(d));
    assert_int_equal(atomic_load(&account.bytes), 0);
    kk_dev_close(d);
}

/* An allocation that fails is no slab's, and takes nothing. */
static void failures_are_told(void **state)
{
    (void)state;
    struct kk_dev *d = NULL;
    struct kk_err err = {0};
    void *p = NULL;
    KK_ASSERT_OK(kk_dev_open_cpu("scalar", 1, &d, &err), &err);
    for (int k = 1; k <= 2; k++) { /* the probe, the slab */
        kk_mem_fail_after(k);
        int rc = kk_dev_alloc(d, &account, 64 << 10, &p, &err);
        kk_mem_fail_after(0);
        assert_int_equal(rc, KK_ENOMEM);
        assert_false(has_slabs(d));
    }
    KK_ASSERT_OK(kk_dev_alloc(d, &account, 64 << 10, &p, &err), &err);
    kk_dev_free(d, &account, p, 64 << 10);
    assert_false(has_slabs(d));
    kk_dev_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(memory_is_zeroed_and_apart),
                                       cmocka_unit_test(failures_are_told)};
    rng = kk_test_rng("slab");
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Rotary tables: cos and sin of position * inv_freq, as the Hugging Face class computes them (the
 * angle is a float32 product; cos and sin of it are rounded once). Made on the host so that every
 * device has the same bits. */
#include <math.h>

#include "base/mem.h"
#include "model/model_int.h"

enum { FILL = 64 }; /* rows made at once: the most that a step may wait for */

/* Su et al. 2021, arXiv:2104.09864. Pairs r >= R do not turn at all (Gemma 4's "proportional"). */
static float inv_freq(const struct kk_rope *t, int r)
{
    float e = (float)(2 * r) / (float)t->D, factor = (float)t->factor;
    float f = 1.0f / (float)pow(t->theta, (double)e);
    if (t->original > 0) { /* Llama 3: long wavelengths alone are stretched */
        float wave = (float)(2 * 3.14159265358979323846) / f;
        if (wave < (float)(t->original / t->high)) return f;
        if (wave > (float)(t->original / t->low)) return f / factor;
        float mix = ((float)t->original / wave - (float)t->low) / (float)(t->high - t->low);
        return (1 - mix) * f / factor + mix * f;
    }
    return f / factor;
}

static int64_t table_positions(int64_t have, int64_t want)
{
    int64_t n = have ? have : 1024;
    while (n < want) n *= 2;
    return n;
}

size_t kk__rope_bytes(const struct kk_rope_table *t, int64_t positions)
{
    return positions < 1
               ? 0
               : (size_t)table_positions(0, positions) * (size_t)t->rope.R * 2 * sizeof(float);
}

int kk__rope_room(struct kk_dev *dev, struct kk_account *acc, struct kk_rope_table *t,
                  int64_t positions, struct kk_err *err)
{
    if (positions <= t->positions || t->rope.R == 0) return 0;
    const size_t row = (size_t)t->rope.R * 2 * sizeof(float);
    const int64_t n = table_positions(t->positions, positions);
    float *cs = NULL;
    if (!t->host) t->host = kk_malloc(FILL * row);
    if (!t->host) return kk_fail(err, KK_ENOMEM, "out of memory for a rotary table");
    int rc = kk_dev_alloc(dev, acc, (size_t)n * row, (void **)&cs, err);
    if (rc) return rc;
    kk_dev_free(dev, acc, t->cs, (size_t)t->positions * row);
    t->cs = cs;
    t->positions = n;
    t->filled = 0;
    return 0;
}

/* Rows [filled, filled + FILL): room is a multiple of FILL. */
static void fill(struct kk_dev *dev, struct kk_rope_table *t)
{
    const int R = t->rope.R;
    for (int r = 0; r < R; r++) {
        const float f = inv_freq(&t->rope, r);
        for (int p = 0; p < FILL; p++) {
            const double angle = (double)((float)(t->filled + p) * f);
            t->host[(p * R + r) * 2] = (float)cos(angle);
            t->host[(p * R + r) * 2 + 1] = (float)sin(angle);
        }
    }
    const size_t row = (size_t)R * 2;
    dev->ops->upload(dev, t->cs + (size_t)t->filled * row, t->host, FILL * row * sizeof(float));
    t->filled += FILL;
}

int kk__rope_ensure(struct kk_dev *dev, struct kk_account *acc, struct kk_rope_table *t,
                    int64_t positions, struct kk_err *err)
{
    int rc = kk__rope_room(dev, acc, t, positions, err);
    while (!rc && t->rope.R && t->filled < positions) fill(dev, t);
    return rc;
}

void kk__rope_free(struct kk_dev *dev, struct kk_account *acc, struct kk_rope_table *t)
{
    kk_dev_free(dev, acc, t->cs, (size_t)t->positions * (size_t)t->rope.R * 2 * sizeof(float));
    kk_free(t->host);
    t->host = t->cs = NULL;
    t->positions = t->filled = 0;
}

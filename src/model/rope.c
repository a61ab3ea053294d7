/* Rotary tables: cos and sin of position * inv_freq, as the Hugging Face class computes them (the
 * angle is a float32 product; cos and sin of it are rounded once). Made on the host so that every
 * device has the same bits. */
#include <math.h>

#include "base/mem.h"
#include "model/model_int.h"

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

int kk__rope_ensure(struct kk_dev *dev, struct kk_account *acc, struct kk_rope_table *t,
                    int64_t positions, struct kk_err *err)
{
    if (positions <= t->positions || t->rope.R == 0) return 0;
    const int R = t->rope.R;
    int64_t n = table_positions(t->positions, positions);
    size_t bytes = (size_t)n * (size_t)R * 2 * sizeof(float);
    float *host = kk_malloc(bytes), *cs = NULL;
    if (!host)
        return kk_fail(err, KK_ENOMEM, "out of memory for a rotary table of %zu bytes", bytes);
    int rc = kk_dev_alloc(dev, acc, bytes, (void **)&cs, err);
    if (!rc) {
        for (int r = 0; r < R; r++) {
            float f = inv_freq(&t->rope, r);
            for (int64_t p = 0; p < n; p++) {
                double angle = (double)((float)p * f);
                host[(p * R + r) * 2] = (float)cos(angle);
                host[(p * R + r) * 2 + 1] = (float)sin(angle);
            }
        }
        dev->ops->upload(dev, cs, host, bytes);
        kk__rope_free(dev, acc, t);
        t->cs = cs;
        t->positions = n;
    }
    kk_free(host);
    return rc;
}

void kk__rope_free(struct kk_dev *dev, struct kk_account *acc, struct kk_rope_table *t)
{
    kk_dev_free(dev, acc, t->cs, (size_t)t->positions * (size_t)t->rope.R * 2 * sizeof(float));
    t->cs = NULL;
    t->positions = 0;
}

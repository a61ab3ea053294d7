/* Matrix products: linear and glu. Few rows: stream_int.h. */
#include "dev/cuda/stream_int.h"

namespace
{

/* act(gate x) * (up x): slots 2 i and 2 i + 1 are stripe i of gate and of up */
template <int ROWS> struct glu_job {
    static constexpr bool early = true, same_rows = true;
    const char *gate, *up;
    const bf16 *x;
    bf16 *y;
    enum kk_activation act;
    int T, K, F, stripes, slots, chains;
    size_t stripe_bytes;

    __device__ int item(int q, int s) const
    {
        return ((int)blockIdx.x + q * (int)gridDim.x) * (slots / 2) + s / 2;
    }
    __device__ void begin(char *) {}
    __device__ void finish() {}
    __device__ int groups() const
    {
        const int n = (stripes + slots / 2 - 1) / (slots / 2);
        return (n - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    }
    __device__ const char *stripe(int q, int s) const
    {
        const int i = item(q, s);
        return i < stripes ? (s & 1 ? up : gate) + (size_t)i * stripe_bytes : NULL;
    }
    __device__ const bf16 *row(int, int, int r) const
    {
        r += (int)blockIdx.y * ROWS;
        return r < T ? x + (size_t)r * (size_t)K : NULL;
    }
    __device__ void sum(const float *part, int q) const
    {
        const int n = (int)blockDim.x, turn = (int)(threadIdx.x + (unsigned)q * ROWS * 8) % n;
        for (int j = turn; j < slots / 2 * ROWS * 8; j += n) {
            const int s = j / (ROWS * 8) * 2, e = j % (ROWS * 8);
            const int t = e / 8 + (int)blockIdx.y * ROWS, f = item(q, s) * 8 + e % 8;
            if (f >= F || t >= T) continue;
            const float *p = part + s * chains * ROWS * 8 + e;
            const float g = kk__chains<ROWS>(p, chains);
            const float u = kk__chains<ROWS>(p + chains * ROWS * 8, chains);
            y[(size_t)t * (size_t)F + (size_t)f] = __float2bfloat16_rn(kk__act(act, g) * u);
        }
    }
};

template <int ROWS> void linear_rows(struct kk_cuda *c, const struct kk_linear_args *a)
{
    kk_linear_job<ROWS> j = kk__linear_job<ROWS>(a);
    const kk_stream g = kk__stream_plan(a->T, j.K, 1, ROWS, 0);
    j.slots = g.slots;
    j.chains = g.chains;
    kk__stream_launch<ROWS>(c, "linear", g, j, (j.stripes + g.slots - 1) / g.slots);
}

template <int ROWS> void glu_rows(struct kk_cuda *c, const struct kk_glu_args *a)
{
    const int64_t K = a->gate->cols, F = a->gate->rows;
    const kk_stream g = kk__stream_plan(a->T, K, 2, ROWS, 0);
    const int n = (int)kk__stripes(F);
    glu_job<ROWS> j = {(const char *)a->gate->data,
                       (const char *)a->up->data,
                       (const bf16 *)a->x,
                       (bf16 *)a->y,
                       a->act,
                       a->T,
                       (int)K,
                       (int)F,
                       n,
                       g.slots,
                       g.chains,
                       (size_t)g.tiles * KK_TILE_BYTES};
    kk__stream_launch<ROWS>(c, "glu", g, j, (n + g.slots / 2 - 1) / (g.slots / 2));
}

} // namespace

size_t kk__cuda_linear_scratch(const struct kk_cuda *, const struct kk_limits *)
{
    return 0;
}

void kk__cuda_linear(struct kk_dev *dev, const struct kk_linear_args *a)
{
    if (a->T <= 8)
        linear_rows<8>(kk__cuda(dev), a);
    else
        linear_rows<16>(kk__cuda(dev), a);
}

void kk__cuda_glu(struct kk_dev *dev, const struct kk_glu_args *a)
{
    if (a->T <= 8)
        glu_rows<8>(kk__cuda(dev), a);
    else
        glu_rows<16>(kk__cuda(dev), a);
}

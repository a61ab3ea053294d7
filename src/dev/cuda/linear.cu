/* Matrix products: linear and glu. Few rows: stream_int.h; many: large_int.h. */
#include "dev/cuda/large_int.h"
#include "dev/cuda/linear_int.h"

namespace
{

/* act(gate x) * (up x): slots 2 i and 2 i + 1 are a stripe of gate and one of up */
template <int ROWS> struct glu_job {
    static constexpr bool eager = false, late = false, carries = false;
    const char *gate, *up;
    const bf16 *x;
    bf16 *y;
    enum kk_activation act;
    int T, K, F, stripes, most, chains; /* stripes of each; most: slots of a group */
    size_t stripe_bytes;

    __device__ int index(int q, int s) const
    {
        return (int)blockIdx.x + (q * most + s) / 2 * (int)gridDim.x;
    }
    __device__ int mine() const
    {
        return 2 * ((stripes - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x);
    }
    __device__ bool early() const { return true; }
    __device__ void begin(char *) {}
    __device__ int groups() const { return (mine() + most - 1) / most; }
    __device__ int slots(int q) const { return min(most, mine() - q * most); }
    __device__ const char *stripe(int q, int s) const
    {
        return (s & 1 ? up : gate) + (size_t)index(q, s) * stripe_bytes;
    }
    __device__ int inputs(int, int) const { return 0; }
    __device__ const bf16 *row(int, int, int r) const
    {
        r += (int)blockIdx.y * ROWS;
        return r < T ? x + (size_t)r * (size_t)K : NULL;
    }
    __device__ void sum(const float *part, int q, int i, int many) const
    {
        const int rows = kk__slice_rows<ROWS>(T), n = slots(q) / 2;
        for (int j = i; j < n * rows * 8; j += many) {
            const int s = j / (rows * 8) * 2, e = j % (rows * 8);
            const int t = e / 8 + (int)blockIdx.y * ROWS, f = index(q, s) * 8 + e % 8;
            const float *p = part + s * chains * rows * 8 + e;
            const float g = kk__chains(p, chains, rows * 8);
            const float u = kk__chains(p + chains * rows * 8, chains, rows * 8);
            if (f < F) put(t, f, g, u);
        }
    }
    __device__ void put(int t, int f, float g, float u) const
    {
        y[(size_t)t * (size_t)F + (size_t)f] = __float2bfloat16_rn(kk__act(act, g) * u);
    }
};

template <int ROWS> glu_job<ROWS> make_glu(const struct kk_glu_args *a)
{
    glu_job<ROWS> j = {};
    j.gate = (const char *)a->gate->data;
    j.up = (const char *)a->up->data;
    j.x = (const bf16 *)a->x;
    j.y = (bf16 *)a->y;
    j.act = a->act;
    j.T = a->T;
    j.K = (int)a->gate->cols;
    j.F = (int)a->gate->rows;
    j.stripes = (int)kk__stripes(j.F);
    j.stripe_bytes = (size_t)kk__tiles(j.K) * KK_TILE_BYTES;
    return j;
}

/* ---- many rows ---------------------------------------------------------------------------- */

/* Tiles of outputs by tiles of rows, rows fastest: blocks that run together share weights. */
struct grid {
    int T, per, row_tiles; /* rows; of a tile; tiles of them */
    int n, t0, s0;         /* of the tile taken: its rows, the first, its first stripe */

    __device__ void take(int i, int stripes)
    {
        s0 = i / row_tiles * stripes;
        t0 = i % row_tiles * per;
        n = min(per, T - t0);
    }
};

struct linear_tiles {
    kk_linear_job<16> j;
    grid at;
    int is_settled;
    int n, stride0, stride1; /* of the two outputs that a thread writes */
    float *y0, *y1, bias0, bias1;

    __device__ bool settled() const { return is_settled; }
    __device__ void begin(char *) {}
    __device__ int tiles() const
    {
        return (j.stripes + KK_LARGE_STRIPES - 1) / KK_LARGE_STRIPES * at.row_tiles;
    }
    __device__ void take(int i)
    {
        at.take(i, KK_LARGE_STRIPES);
        n = at.n;
    }
    __device__ const char *stripe(int s) const
    {
        s = min(at.s0 + s, j.stripes - 1);
        const kk_matrix m = j.of(s);
        return m.w + (size_t)(s - m.first) * j.stripe_bytes;
    }
    __device__ const bf16 *x() const { return j.x; }
    __device__ int row(int r) const { return at.t0 + r; }
    __device__ float *to(int s, int o, float *bias, int *stride) const
    {
        if (s >= j.stripes) return NULL;
        const kk_matrix m = j.of(s);
        o += (s - m.first) * 8;
        if (o >= m.rows) return NULL;
        *bias = m.bias ? m.bias[o] : -0.0f;
        *stride = m.rows;
        return m.y + (size_t)at.t0 * (size_t)m.rows + (size_t)o;
    }
    __device__ void open(int s, int o)
    {
        y0 = to(at.s0 + s, o, &bias0, &stride0);
        y1 = to(at.s0 + s + 1, o, &bias1, &stride1);
    }
    __device__ void store(int r, float a, float b) const
    {
        if (y0) y0[(size_t)r * (size_t)stride0] = j.finished(a, bias0);
        if (y1) y1[(size_t)r * (size_t)stride1] = j.finished(b, bias1);
    }
};

struct glu_tiles {
    glu_job<16> j;
    grid at;
    int n, f; /* f: the output that a thread writes */

    __device__ bool settled() const { return false; }
    __device__ void begin(char *) {}
    __device__ int tiles() const
    {
        return (j.stripes * 2 + KK_LARGE_STRIPES - 1) / KK_LARGE_STRIPES * at.row_tiles;
    }
    __device__ void take(int i)
    {
        at.take(i, KK_LARGE_STRIPES / 2);
        n = at.n;
    }
    __device__ const char *stripe(int s) const
    {
        const size_t i = (size_t)min(at.s0 + s / 2, j.stripes - 1);
        return (s & 1 ? j.up : j.gate) + i * j.stripe_bytes;
    }
    __device__ const bf16 *x() const { return j.x; }
    __device__ int row(int r) const { return at.t0 + r; }
    __device__ void open(int s, int o) { f = (at.s0 + s / 2) * 8 + o; }
    __device__ void store(int r, float a, float b) const
    {
        if (f < j.F) j.put(at.t0 + r, f, a, b);
    }
};

void linear_many(struct kk_cuda *c, const struct kk_linear_args *a)
{
    linear_tiles l = {};
    l.j = kk__linear_job<16>(a);
    l.is_settled = a->settled;
    const kk_large g = kk__large_plan(l.j.K, 0);
    const int64_t columns = (l.j.stripes + KK_LARGE_STRIPES - 1) / KK_LARGE_STRIPES;
    l.at.T = a->T;
    l.at.per = kk__large_tile_rows(c, a->T, columns);
    l.at.row_tiles = (a->T + l.at.per - 1) / l.at.per;
    kk__large_launch(c, "linear", g, l, columns * l.at.row_tiles);
}

void glu_many(struct kk_cuda *c, const struct kk_glu_args *a)
{
    glu_tiles l = {};
    l.j = make_glu<16>(a);
    const kk_large g = kk__large_plan(l.j.K, 0);
    const int64_t columns = (l.j.stripes * 2 + KK_LARGE_STRIPES - 1) / KK_LARGE_STRIPES;
    l.at.T = a->T;
    l.at.per = kk__large_tile_rows(c, a->T, columns);
    l.at.row_tiles = (a->T + l.at.per - 1) / l.at.per;
    kk__large_launch(c, "glu", g, l, columns * l.at.row_tiles);
}

/* ---- few rows ----------------------------------------------------------------------------- */

template <int ROWS> void linear_rows(struct kk_cuda *c, const struct kk_linear_args *a)
{
    kk_linear_job<ROWS> j = kk__linear_job<ROWS>(a);
    const kk_stream g = kk__stream_plan(a->T, j.K, ROWS, kk__block_share(c, j.stripes), 1, 0);
    j.most = g.slots;
    j.chains = g.chains;
    kk__stream_launch<ROWS>(c, "linear", g, j, j.stripes);
}

template <int ROWS> void glu_rows(struct kk_cuda *c, const struct kk_glu_args *a)
{
    glu_job<ROWS> j = make_glu<ROWS>(a);
    const kk_stream g = kk__stream_plan(a->T, j.K, ROWS, 2 * kk__block_share(c, j.stripes), 2, 0);
    j.most = g.slots;
    j.chains = g.chains;
    kk__stream_launch<ROWS>(c, "glu", g, j, j.stripes);
}

/* The router's product goes first: 0 if they do not go together. */
template <int ROWS> int glu_routed(struct kk_cuda *c, const struct kk_glu_args *a)
{
    const struct kk_linear_args route = c->router;
    kk_linear_job<ROWS> r = kk__linear_job<ROWS>(&route);
    glu_job<ROWS> j = make_glu<ROWS>(a);
    const kk_stream h = kk__stream_plan(a->T, j.K, ROWS, 2 * kk__block_share(c, j.stripes), 2, 0);
    const kk_stream g = kk__stream_beside(h, r.K, ROWS, kk__block_share(c, r.stripes), 1);
    if (!g.slots) return 0;
    j.most = h.slots;
    j.chains = h.chains;
    r.most = g.slots;
    r.chains = g.chains;
    c->router.T = 0;
    kk__stream_launch_two<ROWS>(c, "glu", g, r, h, j,
                                j.stripes > r.stripes ? j.stripes : r.stripes);
    c->errand = c->to_choose;
    return 1;
}

} // namespace

size_t kk__cuda_linear_scratch(const struct kk_cuda *, const struct kk_limits *)
{
    return 0;
}

void kk__cuda_linear(struct kk_dev *dev, const struct kk_linear_args *a)
{
    struct kk_cuda *c = kk__cuda(dev);
    if (a->T < 1) return;
    if (c->errand.T && c->errand.T <= KK_HELD_ROWS && a->T == c->errand.T && !c->router.T &&
        !c->beside.T)
        c->beside = *a; /* the experts' first product may go with it */
    else if (a->T > 16 && kk__large_fits(a->w[0]->cols))
        linear_many(c, a);
    else if (a->T <= 8)
        linear_rows<8>(c, a);
    else
        linear_rows<16>(c, a);
}

void kk__cuda_glu(struct kk_dev *dev, const struct kk_glu_args *a)
{
    struct kk_cuda *c = kk__cuda(dev);
    if (a->T < 1) return;
    if (c->router.T == a->T && (a->T <= 8 ? glu_routed<8>(c, a) : glu_routed<16>(c, a))) return;
    if (a->T > 16 && kk__large_fits(a->gate->cols))
        glu_many(c, a);
    else if (a->T <= 8)
        glu_rows<8>(c, a);
    else
        glu_rows<16>(c, a);
}

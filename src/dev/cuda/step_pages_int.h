/* Private to step.cu: pages, the blocks of rows that are in host memory. The finder of each SM reads
 * them over the bus in the order of the walk, a unit whenever it would wait, and writes them to the
 * ring of slots in device memory as these come free; who attends to a page waits for all of it.
 * Nothing else of the step waits, so that pages come while other layers are computed. */
#ifndef KK_DEV_CUDA_STEP_PAGES_INT_H
#define KK_DEV_CUDA_STEP_PAGES_INT_H

#include "dev/cuda/step_split_int.h"

namespace
{

__device__ inline int page_slot(const struct ks_pages &p, int i)
{
    return (p.slot0 + i) % p.slots;
}

/* Pages of the layers before layer l */
__device__ inline int first_page(const struct ks_args &a, int l)
{
    const int sliding = __popcll(a.pages.sliding & (((uint64_t)1 << l) - 1));
    return sliding * a.pages.n[1] + (l - sliding) * a.pages.n[0];
}

/* The page that an item's stored rows are in; -1: they are not in one. */
__device__ inline int page_of(const struct ks_args &a, const struct item &it, bool sliding,
                              int layer)
{
    const auto &q = a.seq[it.seq].pages[sliding];
    const int i = it.base / KK_CUDA_SPLIT - q.first;
    return i >= 0 && i < q.n ? first_page(a, layer) + q.before + i : -1;
}

/* Is the word v? Then what was done before it was written is seen. */
__device__ inline bool has_number(const uint32_t *p, uint32_t v)
{
    uint32_t x;
    asm volatile("ld.relaxed.gpu.global.u32 %0,[%1];" : "=r"(x) : "l"(p) : "memory");
    if (x != v) return false;
    asm volatile("ld.acquire.gpu.global.u32 %0,[%1];" : "=r"(x) : "l"(p) : "memory");
    return true;
}

/* What this thread wrote or read before, or others that it met, is done when the word is seen. */
__device__ inline void tell_number(uint32_t *p, uint32_t v)
{
    asm volatile("st.release.gpu.global.u32 [%0],%1;" ::"l"(p), "r"(v) : "memory");
}

/* Units first, first + step, .. of page i have come; n <= 32 of them, by a warp. */
__device__ inline void await_units(const struct context &c, int i, int first, int step, int n)
{
    const struct ks_pages &p = c.a->pages;
    const uint32_t *there = p.there + page_slot(p, i) * KS_PAGE_UNITS + first + c.lane * step;
    struct watch w = {0};
    while (c.lane < n && !has_number(there, p.number + (uint32_t)i)) still_waiting(w, 50, i);
    __syncwarp();
}

/* KV head g of page i has been read. One lane. */
__device__ inline void leave_page(const struct ks_args &a, int i, int g)
{
    tell_number(a.pages.left + page_slot(a.pages, i) * KS_PAGE_HEADS + g,
                a.pages.number + (uint32_t)i);
}

/* Brings this SM's units of all pages of the step, one after another. Between calls of go_on one is
 * on its way to registers. */
struct pager {
    enum { LOADS = KS_PAGE_UNIT / 512 };
    struct context c;
    int layer, unit; /* the next: of the layer's */
    bool held;       /* v is on its way: */
    uint4 v[LOADS];
    char *to;
    uint32_t *there, number;

    __device__ inline pager()
        : c(who(KS_CONSUMERS + KS_REDUCERS + 1)), layer(0), unit((int)blockIdx.x), held(false)
    {
        if (c.a->pages.slots)
            settle();
        else
            layer = c.a->n_layers;
    }
    __device__ inline bool busy() const { return held || layer < c.a->n_layers; }
    __device__ inline int sliding() const { return c.a->pages.sliding >> layer & 1; }
    __device__ static inline int units_of_page(int sliding)
    {
        return KK_CUDA_SPLIT * (sliding ? shape<256>::kv_row : shape<512>::kv_row) / KS_PAGE_UNIT;
    }
    /* To the first layer from this on that has a unit more. */
    __device__ inline void settle()
    {
        for (; layer < c.a->n_layers; layer++, unit = (int)blockIdx.x)
            if (unit < c.a->pages.n[sliding()] * units_of_page(sliding())) break;
    }
    /* A page may lie in the slot of page i: that before it has been read. */
    __device__ inline bool is_free(int i, int slot, int heads) const
    {
        const struct ks_pages &p = c.a->pages;
        const uint32_t *left = p.left + slot * KS_PAGE_HEADS + c.lane;
        bool ok = true;
        if (i < p.slots) return true;
        if (c.lane < heads) ok = has_number(left, p.number + (uint32_t)(i - p.slots));
        return __all_sync(FULL_MASK, ok);
    }
    __device__ inline void go_on()
    {
        if (held) {
#pragma unroll
            for (int k = 0; k < LOADS; k++) *(uint4 *)(to + k * 512) = v[k];
            __syncwarp();
            if (c.lane == 0) tell_number(there, number);
            held = false;
        }
        if (layer >= c.a->n_layers) return;
        const struct ks_pages &p = c.a->pages;
        const int per_page = units_of_page(sliding()), u = unit % per_page;
        const int i = first_page(*c.a, layer) + unit / per_page, slot = page_slot(p, i);
        if (!is_free(i, slot, sliding() ? shape<256>::G : shape<512>::G)) return;
        const int at = u * KS_PAGE_UNIT + c.lane * 16;
        const char *from = (const char *)__ldg((const unsigned long long *)p.from + i) + at;
#pragma unroll
        for (int k = 0; k < LOADS; k++)
            asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3},[%4];"
                         : "=r"(v[k].x), "=r"(v[k].y), "=r"(v[k].z), "=r"(v[k].w)
                         : "l"(from + k * 512)
                         : "memory");
        to = p.ring + slot * p.slot_bytes + at;
        there = p.there + slot * KS_PAGE_UNITS + u;
        number = p.number + (uint32_t)i;
        held = true;
        unit += (int)gridDim.x;
        settle();
    }
};

} // namespace

#endif

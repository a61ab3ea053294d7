/* Private to step.cu: pages, blocks of full layers that are in host memory (docs/adr/0031). The
 * finder of each SM reads them over the bus in the order of the walk, a unit whenever it would
 * wait, and writes them to the ring of slots in device memory as these come free; who attends to a
 * page waits for it. Nothing else of the step waits: pages come while other layers are computed. */
#ifndef KK_DEV_CUDA_STEP_PAGES_INT_H
#define KK_DEV_CUDA_STEP_PAGES_INT_H

#include "dev/cuda/step_split_int.h"

namespace
{

__device__ inline int page_slot(const struct ks_pages &p, int i)
{
    return (p.slot0 + i) % p.slots;
}

/* The page that an item's stored rows are in; -1: they are not in one. */
__device__ inline int page_of(const struct ks_args &a, const struct item &it, int layer)
{
    const auto &q = a.seq[it.seq].pages;
    const int i = it.base / KK_CUDA_SPLIT - q.first;
    const int before = __popcll(a.pages.full & (((uint64_t)1 << layer) - 1)); /* full layers */
    return i >= 0 && i < q.n ? before * a.pages.n + q.before + i : -1;
}

/* Is the word v? Then what was done before it was written is seen. */
__device__ inline bool has_number(const uint32_t *p, uint32_t v)
{
    uint32_t x;
    asm volatile("ld.acquire.gpu.global.u32 %0,[%1];" : "=r"(x) : "l"(p) : "memory");
    return x == v;
}

/* What this thread wrote or read before, or others that it met, is done when the word is seen. */
__device__ inline void tell_number(uint32_t *p, uint32_t v)
{
    asm volatile("st.release.gpu.global.u32 [%0],%1;" ::"l"(p), "r"(v) : "memory");
}

/* Rows 16 k .. 16 k + 15 of page i have come, two a unit. The warp. */
__device__ inline void await_rows(const struct context &c, int i, int k)
{
    const struct ks_pages &p = c.a->pages;
    const uint32_t *there = p.there + page_slot(p, i) * KS_PAGE_UNITS + k * 8 + c.lane;
    struct watch w = {0};
    while (c.lane < 8 && !has_number(there, p.number + (uint32_t)i)) still_waiting(w, 50, i);
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
    int unit, end; /* the next, of all pages' */
    bool held;     /* v is on its way: */
    uint4 v[LOADS];
    char *to;
    uint32_t *there, number;

    __device__ inline pager()
        : c(who(KS_CONSUMERS + KS_REDUCERS + 1)), unit((int)blockIdx.x), held(false)
    {
        const struct ks_pages &p = c.a->pages;
        end = p.slots ? __popcll(p.full) * p.n * KS_PAGE_UNITS : 0;
    }
    __device__ inline bool busy() const { return held || unit < end; }
    /* A page may lie in the slot of page i: that before it has been read. */
    __device__ inline bool is_free(int i, int slot) const
    {
        const struct ks_pages &p = c.a->pages;
        const uint32_t *left = p.left + slot * KS_PAGE_HEADS + c.lane;
        bool ok = true;
        if (i < p.slots) return true;
        if (c.lane < KS_PAGE_HEADS) ok = has_number(left, p.number + (uint32_t)(i - p.slots));
        return __all_sync(FULL_MASK, ok);
    }
    /* more 0: only to the end of what is on its way */
    __device__ inline void go_on(bool more)
    {
        if (held) {
#pragma unroll
            for (int k = 0; k < LOADS; k++) *(uint4 *)(to + k * 512) = v[k];
            __syncwarp();
            if (c.lane == 0) tell_number(there, number);
            held = false;
        }
        if (!more || unit >= end) return;
        const struct ks_pages &p = c.a->pages;
        const int i = unit / KS_PAGE_UNITS, u = unit % KS_PAGE_UNITS, slot = page_slot(p, i);
        if (!is_free(i, slot)) return;
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
    }
};

static_assert(KK_CUDA_SPLIT * shape<512>::kv_row == KS_PAGE_UNITS * KS_PAGE_UNIT &&
                  shape<512>::G == KS_PAGE_HEADS,
              "a page of a full layer");

} // namespace

#endif

/* Private to dev/cuda: the device, its weight layout, how kernels are launched, and what the files
 * of this folder offer each other. The order of every sum is in docs/adr/0020; a kernel that keeps
 * it may be replaced by any other that does.
 *
 * Weights are bf16 tiles of 8 outputs x 16 inputs, 256 bytes: output r of a tile at 32 r, input k
 * at 2 k. A stripe is the tiles of 8 outputs, inputs ascending; a matrix is its stripes, outputs
 * ascending; both ends are filled up with zeros. A stripe is contiguous, so that one bulk copy
 * brings a unit of work; a tile is what 32 lanes read as operand B of mma.m16n8k16 with one 8-byte
 * load each (lane 4 g + q: output g, inputs 4 q .. 4 q + 3). Inputs are permuted within a tile by
 * that, for weights and activations alike, which changes no bit (0020).
 *
 * Activations (`act`) are bf16 [T, K] row-major. Where K is no multiple of 16 a kernel reads zeros
 * past the end of a row. */
#ifndef KK_DEV_CUDA_CUDA_INT_H
#define KK_DEV_CUDA_CUDA_INT_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>

extern "C" { /* C headers */
#include "base/mem.h"
#include "base/pool.h"
#include "base/quant.h"
#include "base/rng.h"
#include "dev/stack.h"
}

#include "dev/cuda/numbers_int.h"

enum {
    KK_TILE_ROWS = 8,
    KK_TILE_K = 16,
    KK_TILE_BYTES = 256,
    KK_CUDA_SPLIT = 128, /* keys of an attention split: kk_dev.attn_split */
    KK_CUDA_RING_PART = 8 << 20,
    KK_CUDA_HEAD = 512,     /* head dim, at most; a multiple of 16 */
    KK_CUDA_WIDEST = 16384, /* elements of a row that a block keeps in registers: model width */
    KK_CUDA_SEQS = 1024,    /* sequences of a step */
    KK_CUDA_GPUS = 64,
};

__host__ __device__ static inline int64_t kk__tiles(int64_t k)
{
    return (k + KK_TILE_K - 1) / KK_TILE_K;
}

__host__ __device__ static inline int64_t kk__stripes(int64_t rows)
{
    return (rows + KK_TILE_ROWS - 1) / KK_TILE_ROWS;
}

/* Tiles of a chain of a product with so many tiles of inputs. */
__host__ __device__ static inline int kk__chain_tiles(int64_t tiles)
{
    return tiles % 11 == 0 ? 11 : 8;
}

/* Stripe s of matrix m. */
__host__ __device__ static inline const char *kk__stripe(const struct kk_weight *w, int m,
                                                         int64_t s)
{
    return (const char *)w->data + (size_t)m * w->mat_bytes +
           (size_t)s * (size_t)kk__tiles(w->cols) * KK_TILE_BYTES;
}

/* Rows whose logits are there and whose experts are to be chosen. */
struct kk_router {
    const float *logits, *scale;
    int32_t *idx;
    float *weight;
    int T, E, A;
};
enum { /* the next product does it on the side for so many rows, experts */
       KK_CHOSEN_ROWS = 128,
       KK_CHOSEN_EARLY = 128,
       KK_HELD_ROWS = 16 /* so few rows' products wait for what they go together with */
};

/* ---- the device --------------------------------------------------------------------------- */

struct kk_cuda {
    struct kk_dev dev; /* first */
    int index, sms;
    size_t smem_most; /* shared memory a block may ask for */
    cudaStream_t stream;
    struct kk_limits limits; /* of reserve */
    struct kk_account *account;
    char *scratch; /* of reserve; each file's part, in bytes from there: */
    size_t scratch_bytes, linear_at, moe_at, attn_at, ops_at;
    cudaError_t error; /* the first since step_end, and the op it came from */
    const char *op;
    uint64_t products,
        routed;              /* of few rows so far (stream_int.h); when experts were chosen last */
    struct kk_router errand; /* of the last route, not yet done; T 0: none */
    /* Products not yet launched: the router's, which goes with glu, then its errand; and one after
     * it, which goes with the experts. T 0: none */
    struct kk_linear_args router, beside;
    struct kk_router to_choose;
    struct kk_fault *fault, *fault_dev; /* one word, as the host and as kernels see it */
    struct kk_upload *upload;           /* pinned ring for what travels (memory.cu) */
    struct kk_slab *slabs;              /* of host_alloc (memory.cu) */
    struct kk_account pinned;           /* bytes of both */
    struct kk_stager *stager;           /* copies beside the ops (stage.cu) */
    struct kk_pool *pool;               /* host threads that read weights */
};

/* What a kernel found wrong with its arguments; the host reads it at step_end. */
struct kk_fault {
    int32_t id, bound; /* of embed: the first id seen outside [0, bound); bound 0: none */
};

static inline struct kk_cuda *kk__cuda(struct kk_dev *dev)
{
    return (struct kk_cuda *)dev;
}

/* Choose now: what comes next does not on the side. */
void kk__cuda_choose(struct kk_cuda *c);
/* Launch what was held back: what comes next does not go with it. */
void kk__cuda_release(struct kk_cuda *c);
static inline bool kk__cuda_holds(const struct kk_cuda *c)
{
    return c->router.T || c->beside.T || c->errand.T;
}

/* The calling thread's CUDA calls are for this device from here on. */
void kk__cuda_use(struct kk_cuda *c);
/* Remember the first error of a step. */
void kk__cuda_latch(struct kk_cuda *c, cudaError_t e, const char *op);

/* Let a kernel have so much shared memory. known: the caller's, one for each kernel, zeroed; asking
 * takes as long as launching. */
static inline void kk__allow(struct kk_cuda *c, const char *op, const void *kernel, int bytes,
                             int (&known)[KK_CUDA_GPUS])
{
    int &had = known[c->index % KK_CUDA_GPUS];
    if (bytes <= had) return;
    kk__cuda_latch(
        c, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), op);
    had = bytes;
}

/* Launch on the device's stream, with programmatic dependent launch: a kernel may start while the
 * one before it ends. So every kernel calls cudaGridDependencySynchronize() before it reads what
 * another op wrote, or writes what one may still read; weights, positions and what else no op of a
 * step writes it may read before. A kernel lets the next start when it has itself been past that
 * call, so that whatever was launched before it has ended when the next starts; but residual, route
 * and the merge of attention, which are small, let it start at once: the next op's weights are then
 * on their way while they run. Two of them never stand before one that relies on more than the
 * weights (docs/adr/0022). */
template <typename... P, typename... A>
static inline void kk__launch(struct kk_cuda *c, const char *op, void (*kernel)(P...), dim3 grid,
                              dim3 block, size_t smem, A... args)
{
    cudaLaunchConfig_t cfg = {};
    cudaLaunchAttribute at[1];
    if (kk__cuda_holds(c)) kk__cuda_release(c);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    at[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    at[0].val.programmaticStreamSerializationAllowed = 1;
    cfg.gridDim = grid;
    cfg.blockDim = block;
    cfg.dynamicSmemBytes = smem;
    cfg.stream = c->stream;
    cfg.attrs = at;
    cfg.numAttrs = 1;
    kk__cuda_latch(c, cudaLaunchKernelEx(&cfg, kernel, (P)args...), op);
}

/* ---- ops, by file ------------------------------------------------------------------------- */

extern "C" {
/* memory.cu */
int kk__cuda_memory_open(struct kk_cuda *, struct kk_err *);
void kk__cuda_memory_close(struct kk_cuda *);
/* Room for bytes <= KK_CUDA_RING_PART in pinned memory, once what used it before has passed; the
 * caller fills it and starts a transfer from it on the device's stream. */
char *kk__cuda_ring(struct kk_cuda *, size_t bytes);
size_t kk__cuda_free_bytes(struct kk_dev *);
void *kk__cuda_alloc(struct kk_dev *, size_t bytes);
void kk__cuda_free(struct kk_dev *, void *p, size_t bytes);
void *kk__cuda_host_alloc(struct kk_dev *, size_t bytes);
void kk__cuda_host_free(struct kk_dev *, void *p, size_t bytes);
void kk__cuda_upload(struct kk_dev *, void *dst, const void *src, size_t bytes);
void kk__cuda_download(struct kk_dev *, void *dst, const void *src, size_t bytes);
void kk__cuda_copy(struct kk_dev *, void *dst, const void *src, size_t bytes);
void kk__cuda_page_out(struct kk_dev *, void *dst, const void *src, size_t bytes);
/* stage.cu */
int kk__cuda_stage_open(struct kk_cuda *, struct kk_err *);
void kk__cuda_stage_close(struct kk_cuda *);
int64_t kk__cuda_stage(struct kk_dev *, int n, void *const *dst, const void *const *src,
                       const size_t *bytes);
void kk__cuda_stage_wait(struct kk_dev *, int64_t batch);
void kk__cuda_stage_free(struct kk_dev *);
/* weight.cu */
int kk__cuda_weight_load(struct kk_dev *, const struct kk_weight_src *, struct kk_account *,
                         struct kk_weight *out, struct kk_err *);
size_t kk__cuda_weight_bytes(const struct kk_dev *, const struct kk_weight_src *);
/* linear.cu: products; moe.cu: router and experts */
size_t kk__cuda_linear_scratch(const struct kk_cuda *, const struct kk_limits *);
void kk__cuda_linear(struct kk_dev *, const struct kk_linear_args *);
void kk__cuda_glu(struct kk_dev *, const struct kk_glu_args *);
size_t kk__cuda_moe_scratch(const struct kk_cuda *, const struct kk_limits *);
void kk__cuda_route(struct kk_dev *, const struct kk_route_args *);
void kk__cuda_moe(struct kk_dev *, const struct kk_moe_args *);
/* attn.cu */
size_t kk__cuda_attn_scratch(const struct kk_cuda *, const struct kk_limits *);
void kk__cuda_attn(struct kk_dev *, const struct kk_attn_args *);
/* ops.cu: what goes row by row */
size_t kk__cuda_ops_scratch(const struct kk_cuda *, const struct kk_limits *);
void kk__cuda_embed(struct kk_dev *, const struct kk_embed_args *);
void kk__cuda_norm(struct kk_dev *, const struct kk_norm_args *);
void kk__cuda_qkv(struct kk_dev *, const struct kk_qkv_args *);
void kk__cuda_residual(struct kk_dev *, const struct kk_residual_args *);
void kk__cuda_gather(struct kk_dev *, const struct kk_gather_args *);
void kk__cuda_argmax(struct kk_dev *, const struct kk_argmax_args *);
void kk__cuda_kv_store(struct kk_dev *, const struct kk_kv_store_args *);
void kk__cuda_convert(struct kk_dev *, const struct kk_convert_args *);
/* step_plan.cu: a whole step as one kernel */
size_t kk__cuda_stack_bytes(const struct kk_dev *, const struct kk_stack *);
int kk__cuda_stack_open(struct kk_dev *, const struct kk_stack *, struct kk_account *, void **out,
                        struct kk_err *);
int kk__cuda_stack_step(struct kk_dev *, void *stack, const struct kk_stack_step *);
void kk__cuda_stack_close(struct kk_dev *, void *stack);
}

#endif

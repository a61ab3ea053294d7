/* Opening a GPU, the table of its ops, scratch, and where a step begins and ends. */
#include <stdio.h>

#include "dev/cuda/cuda_int.h"

enum { COMPUTE_MAJOR = 9, COMPUTE_MINOR = 0 }; /* what kernels are compiled for (mk/config.mk) */

void kk__cuda_use(struct kk_cuda *c)
{
    static thread_local int current = -1;
    if (current == c->index) return;
    kk__cuda_latch(c, cudaSetDevice(c->index), "cudaSetDevice");
    current = c->index;
}

void kk__cuda_latch(struct kk_cuda *c, cudaError_t e, const char *op)
{
    if (e == cudaSuccess || c->error != cudaSuccess) return;
    c->error = e;
    c->op = op;
    cudaGetLastError(); /* one that is no lasting fault is not found again by the next call */
}

/* ---- a step ------------------------------------------------------------------------------- */

static void step_begin(struct kk_dev *dev)
{
    kk__cuda_use(kk__cuda(dev));
}

/* A fault inside a kernel is seen only here, so op tells no more than that it was in this step. */
static int step_end(struct kk_dev *dev, struct kk_err *err)
{
    struct kk_cuda *c = kk__cuda(dev);
    if (kk__cuda_holds(c)) kk__cuda_release(c);
    const cudaError_t launch = c->error, run = cudaStreamSynchronize(c->stream);
    c->error = cudaSuccess;
    if (launch != cudaSuccess)
        return kk_fail(err, KK_EDEVICE, "%s: %s: %s", dev->name, c->op, cudaGetErrorString(launch));
    if (run != cudaSuccess)
        return kk_fail(err, KK_EDEVICE,
                       "%s: a kernel of this step failed: %s (run again with "
                       "CUDA_LAUNCH_BLOCKING=1 in the environment to see which)",
                       dev->name, cudaGetErrorString(run));
    const struct kk_fault found = *c->fault;
    if (!found.bound) return 0;
    *c->fault = (struct kk_fault){0, 0};
    return kk_fail(err, KK_ERANGE, "embed: id %d of %d rows", (int)found.id, (int)found.bound);
}

static int step_pass(struct kk_dev *, struct kk_err *)
{
    return 0;
}

/* ---- scratch ------------------------------------------------------------------------------ */

/* Where each file's part starts; returns the bytes of all. */
static size_t layout(struct kk_cuda *c, const struct kk_limits *l)
{
    size_t at = 0;
    const size_t need[4] = {kk__cuda_linear_scratch(c, l), kk__cuda_moe_scratch(c, l),
                            kk__cuda_attn_scratch(c, l), kk__cuda_ops_scratch(c, l)};
    size_t *const place[4] = {&c->linear_at, &c->moe_at, &c->attn_at, &c->ops_at};
    for (int i = 0; i < 4; i++) {
        *place[i] = at;
        at += (need[i] + 255) & ~(size_t)255;
    }
    return at;
}

static size_t reserve_bytes(const struct kk_dev *dev, const struct kk_limits *l)
{
    struct kk_cuda c = *(const struct kk_cuda *)dev;
    return layout(&c, l);
}

static int reserve(struct kk_dev *dev, const struct kk_limits *want, struct kk_account *acc,
                   struct kk_err *err)
{
    struct kk_cuda *c = kk__cuda(dev);
    const struct kk_limits l = kk_limits_widest(c->limits, want);
    const size_t bytes = reserve_bytes(dev, &l);
    void *base;
    int rc = kk_dev_alloc(dev, acc, bytes, &base, err);
    if (rc) return rc;
    kk_dev_free(dev, c->account, c->scratch, c->scratch_bytes);
    c->scratch = (char *)base;
    c->scratch_bytes = layout(c, &l);
    c->account = acc;
    c->limits = l;
    return 0;
}

/* ---- opening ------------------------------------------------------------------------------ */

static void close_cuda(struct kk_dev *dev)
{
    struct kk_cuda *c = kk__cuda(dev);
    kk__cuda_use(c);
    if (c->stream) cudaStreamSynchronize(c->stream);
    if (c->scratch) kk_dev_free(dev, c->account, c->scratch, c->scratch_bytes);
    kk__cuda_stage_close(c);
    kk__cuda_memory_close(c);
    if (c->stream) cudaStreamDestroy(c->stream);
    if (c->fault) cudaFreeHost(c->fault);
    kk_pool_close(c->pool);
    kk_free(c);
}

static struct kk_ops cuda_ops(void)
{
    struct kk_ops o = {};
    o.alloc = kk__cuda_alloc;
    o.free = kk__cuda_free;
    o.free_bytes = kk__cuda_free_bytes;
    o.host_alloc = kk__cuda_host_alloc;
    o.host_free = kk__cuda_host_free;
    o.upload = kk__cuda_upload;
    o.download = kk__cuda_download;
    o.copy = kk__cuda_copy;
    o.page_out = kk__cuda_page_out;
    o.stage = kk__cuda_stage;
    o.stage_wait = kk__cuda_stage_wait;
    o.stage_free = kk__cuda_stage_free;
    o.weight_load = kk__cuda_weight_load;
    o.weight_bytes = kk__cuda_weight_bytes;
    o.reserve = reserve;
    o.reserve_bytes = reserve_bytes;
    o.close = close_cuda;
    o.step_begin = step_begin;
    o.step_end = step_end;
    o.step_pass = step_pass;
    o.embed = kk__cuda_embed;
    o.norm = kk__cuda_norm;
    o.linear = kk__cuda_linear;
    o.qkv = kk__cuda_qkv;
    o.attn = kk__cuda_attn;
    o.residual = kk__cuda_residual;
    o.glu = kk__cuda_glu;
    o.route = kk__cuda_route;
    o.moe = kk__cuda_moe;
    o.gather = kk__cuda_gather;
    o.argmax = kk__cuda_argmax;
    o.kv_store = kk__cuda_kv_store;
    o.convert = kk__cuda_convert;
    return o;
}

/* One sentence about why there is no such GPU; 0 if there is. */
static int look_for(int index, struct kk_err *err)
{
    int n = 0, driver = 0, runtime = 0;
    const cudaError_t e = cudaGetDeviceCount(&n);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        return kk_fail(err, KK_EUNAVAILABLE, "cuda:%d: this machine has no NVIDIA driver", index);
    if (e == cudaErrorInsufficientDriver)
        return kk_fail(err, KK_EUNAVAILABLE,
                       "cuda:%d: the NVIDIA driver knows CUDA %d.%d; this program needs %d.%d: "
                       "install a newer driver",
                       index, driver / 1000, driver % 1000 / 10, runtime / 1000,
                       runtime % 1000 / 10);
    if (e == cudaErrorNoDevice || (e == cudaSuccess && n == 0))
        return kk_fail(err, KK_EUNAVAILABLE, "cuda:%d: the NVIDIA driver finds no GPU", index);
    if (e != cudaSuccess)
        return kk_fail(err, KK_EUNAVAILABLE, "cuda:%d: %s", index, cudaGetErrorString(e));
    if (index >= n)
        return kk_fail(err, KK_EUNAVAILABLE, "cuda:%d: this machine has %d GPU%s, cuda:0%s", index,
                       n, n == 1 ? "" : "s", n == 1 ? "" : " and on");
    return 0;
}

static int describe(struct kk_cuda *c, struct kk_err *err)
{
    cudaDeviceProp p;
    const cudaError_t e = cudaGetDeviceProperties(&p, c->index);
    if (e != cudaSuccess)
        return kk_fail(err, KK_EUNAVAILABLE, "cuda:%d: %s", c->index, cudaGetErrorString(e));
    if (p.major != COMPUTE_MAJOR || p.minor != COMPUTE_MINOR)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "cuda:%d: %s has compute capability %d.%d; this program was built for %d.%d "
                       "(H100, H200)",
                       c->index, p.name, p.major, p.minor, COMPUTE_MAJOR, COMPUTE_MINOR);
    c->sms = p.multiProcessorCount;
    c->smem_most = p.sharedMemPerBlockOptin;
    snprintf(c->dev.name, sizeof c->dev.name, "cuda %s", p.name);
    snprintf(c->dev.isa, sizeof c->dev.isa, "cuda");
    return 0;
}

static int start(struct kk_cuda *c, struct kk_err *err)
{
    void *fault = NULL;
    cudaError_t e = cudaSetDevice(c->index);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaHostAlloc(&fault, sizeof *c->fault, cudaHostAllocMapped);
    if (e == cudaSuccess) {
        c->fault = (struct kk_fault *)fault;
        *c->fault = (struct kk_fault){0, 0};
        e = cudaHostGetDevicePointer((void **)&c->fault_dev, fault, 0);
    }
    if (e != cudaSuccess)
        return kk_fail(err, e == cudaErrorMemoryAllocation ? KK_ENOMEM : KK_EUNAVAILABLE,
                       "cuda:%d: cannot be opened: %s", c->index, cudaGetErrorString(e));
    int rc = kk__cuda_memory_open(c, err);
    if (!rc) rc = kk__cuda_stage_open(c, err);
    return rc ? rc : kk_pool_open(0, &c->pool, err);
}

int kk_dev_open_cuda(int index, struct kk_dev **out, struct kk_err *err)
{
    static const struct kk_ops ops = cuda_ops();
    *out = NULL;
    int rc = look_for(index, err);
    if (rc) return rc;
    struct kk_cuda *c = (struct kk_cuda *)kk_calloc(1, sizeof *c);
    if (!c) return kk_fail(err, KK_ENOMEM, "out of memory for a device");
    c->index = index;
    c->dev.ops = &ops;
    static const struct kk_stack_ops stack = {kk__cuda_stack_bytes, kk__cuda_stack_open,
                                              kk__cuda_stack_step, kk__cuda_stack_close};
    c->dev.stack = &stack;
    c->dev.attn_split = KK_CUDA_SPLIT;
    c->dev.act = KK_BF16;
    c->dev.head_unit = KK_TILE_K;
    c->dev.head_most = KK_CUDA_HEAD;
    c->dev.width_most = KK_CUDA_WIDEST;
    c->dev.seqs_most = KK_CUDA_SEQS;
    c->dev.tables.name = "device scratch";
    c->pinned.name = "pinned host memory";
    rc = describe(c, err);
    if (!rc) rc = start(c, err);
    if (rc) {
        close_cuda(&c->dev);
        return rc;
    }
    kk_dev_check(&c->dev);
    *out = &c->dev;
    return 0;
}

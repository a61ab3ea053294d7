/* Copies from pinned host memory beside the ops: a stream of its own for the copy engine, events in
 * both directions. */
#include "dev/cuda/cuda_int.h"

enum { EVENTS = 64 };

struct kk_stager {
    cudaStream_t copies;
    cudaEvent_t done[EVENTS]; /* batch i records done[i % EVENTS]; a later one is as good */
    cudaEvent_t freed;
    int64_t batches;
};

int kk__cuda_stage_open(struct kk_cuda *c, struct kk_err *err)
{
    struct kk_stager *s = (struct kk_stager *)kk_calloc(1, sizeof *s);
    if (!s) return kk_fail(err, KK_ENOMEM, "out of memory for a device");
    c->stager = s;
    cudaError_t e = cudaStreamCreateWithFlags(&s->copies, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaEventCreateWithFlags(&s->freed, cudaEventDisableTiming);
    for (int i = 0; e == cudaSuccess && i < EVENTS; i++)
        e = cudaEventCreateWithFlags(&s->done[i], cudaEventDisableTiming);
    if (e == cudaSuccess) return 0;
    return kk_fail(err, KK_EDEVICE, "%s: a stream for copies: %s", c->dev.name,
                   cudaGetErrorString(e));
}

void kk__cuda_stage_close(struct kk_cuda *c)
{
    struct kk_stager *s = c->stager;
    if (!s) return;
    if (s->copies) cudaStreamSynchronize(s->copies);
    for (int i = 0; i < EVENTS; i++)
        if (s->done[i]) cudaEventDestroy(s->done[i]);
    if (s->freed) cudaEventDestroy(s->freed);
    if (s->copies) cudaStreamDestroy(s->copies);
    kk_free(s);
    c->stager = NULL;
}

int64_t kk__cuda_stage(struct kk_dev *dev, int n, void *const *dst, const void *const *src,
                       const size_t *bytes)
{
    struct kk_cuda *c = kk__cuda(dev);
    struct kk_stager *s = c->stager;
    cudaMemcpyAttributes how = {};
    size_t first = 0;
    if (n < 1) return s->batches;
    kk__cuda_use(c);
    how.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    how.flags = cudaMemcpyFlagPreferOverlapWithCompute;
    kk__cuda_latch(c, cudaMemcpyBatchAsync(dst, src, bytes, (size_t)n, &how, &first, 1, s->copies),
                   "stage");
    s->batches++;
    kk__cuda_latch(c, cudaEventRecord(s->done[s->batches % EVENTS], s->copies), "stage");
    return s->batches;
}

void kk__cuda_stage_wait(struct kk_dev *dev, int64_t batch)
{
    struct kk_cuda *c = kk__cuda(dev);
    kk__cuda_use(c);
    if (batch > 0)
        kk__cuda_latch(c, cudaStreamWaitEvent(c->stream, c->stager->done[batch % EVENTS], 0),
                       "stage_wait");
}

void kk__cuda_stage_free(struct kk_dev *dev)
{
    struct kk_cuda *c = kk__cuda(dev);
    struct kk_stager *s = c->stager;
    kk__cuda_use(c);
    kk__cuda_latch(c, cudaEventRecord(s->freed, c->stream), "stage_free");
    kk__cuda_latch(c, cudaStreamWaitEvent(s->copies, s->freed, 0), "stage_free");
}

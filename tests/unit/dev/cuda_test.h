/* Shared by the tests of the CUDA device: the GPU, or why there is none (each test then skips), and
 * what goes to it and comes back. Buffers of the GPU live until the test's free_all. */
#ifndef KK_TESTS_CUDA_TEST_H
#define KK_TESTS_CUDA_TEST_H

#include "kk_test.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "dev/dev.h"

static struct kk_dev *gpu;
static struct kk_err no_gpu;
static struct kk_account gpu_account = {.name = "test"};

static inline int open_gpu(void **state)
{
    (void)state;
    if (kk_dev_open_cuda(0, &gpu, &no_gpu)) gpu = NULL;
    return 0;
}

static inline int close_gpu(void **state)
{
    (void)state;
    kk_dev_close(gpu);
    return atomic_load(&gpu_account.bytes) != 0;
}

#define NEED_GPU()                                                                                 \
    do {                                                                                           \
        if (gpu) break;                                                                            \
        print_message("skipped: %s\n", no_gpu.msg);                                                \
        skip();                                                                                    \
    } while (0)

static struct {
    void *p;
    size_t bytes;
} gpu_block[256];
static int n_gpu_blocks;

/* Device memory, every byte 0x7f: an element nobody writes is seen. */
static inline void *gpu_room(size_t bytes)
{
    struct kk_err err = {0};
    void *p, *poison = malloc(bytes + 1);
    assert_true(n_gpu_blocks < 256);
    KK_ASSERT_OK(kk_dev_alloc(gpu, &gpu_account, bytes, &p, &err), &err);
    memset(poison, 0x7f, bytes);
    gpu->ops->upload(gpu, p, poison, bytes);
    free(poison);
    gpu_block[n_gpu_blocks].p = p;
    gpu_block[n_gpu_blocks++].bytes = bytes;
    return p;
}

static inline void *to_gpu(const void *src, size_t bytes)
{
    void *p = gpu_room(bytes);
    gpu->ops->upload(gpu, p, src, bytes);
    return p;
}

static inline void *from_gpu(const void *src, size_t bytes) /* malloc */
{
    void *p = malloc(bytes + 1);
    gpu->ops->download(gpu, p, src, bytes);
    return p;
}

static inline void free_all(void)
{
    while (n_gpu_blocks) {
        n_gpu_blocks--;
        kk_dev_free(gpu, &gpu_account, gpu_block[n_gpu_blocks].p, gpu_block[n_gpu_blocks].bytes);
    }
}

#endif

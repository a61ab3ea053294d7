/* Block types to float32, by the definition of each (ggml's; docs/formats/gguf.md has the layouts).
 * The scalar truth: bit for bit what Python's `gguf` package makes of the same blocks. */
#ifndef KK_BASE_QUANT_H
#define KK_BASE_QUANT_H

#include <stdint.h>

#include "base/dtype.h"

/* n numbers of type t at src (aligned as bytes are) to dst. n: a multiple of kk_dtype_block(t). */
void kk_dequant(enum kk_dtype t, const void *src, uint64_t n, float *dst);

#endif

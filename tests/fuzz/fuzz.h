/* What the fuzz targets share. A target is tests/fuzz/fuzz_NAME.c, one libFuzzer program; its seeds
 * are tests/fuzz/corpus/NAME, its words tests/fuzz/NAME.dict. `make fuzz` runs them.
 *
 * A target does not only wait for a crash: it says with FUZZ_CHECK what must hold. */
#ifndef KK_FUZZ_H
#define KK_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "kakeya.h"

#define FUZZ_CHECK(cond)                                                                           \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #cond);              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A fresh directory under TMPDIR, removed at exit; the path of a file in it (static storage, eight
 * in turn); the file written. */
const char *fuzz_dir(void);
const char *fuzz_path(const char *name);
const char *fuzz_file(const char *name, const void *data, size_t len);

int fuzz_is_utf8(const char *text, size_t n);

/* A failure has a code of the table and one non-empty line of UTF-8. Clears err. */
void fuzz_failed(int rc, struct kk_err *err);

/* 24 greedy tokens after a fixed prompt that is longer than the windows of the models here, from a
 * session that is checked on the way; returns how many came. */
enum { FUZZ_TOKENS = 24 };
int fuzz_generate(struct kk_engine *e, uint32_t out[static FUZZ_TOKENS]);

/* The model of the drafter and f_theta targets: width 48, 4 layers, window 24, 160 tokens. */
#define FUZZ_MODEL "synth:tests/data/mini.json:5"

#endif

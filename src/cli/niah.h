/* Needle-in-a-haystack documents for measuring recall.
 *
 * Two kinds. With keys = 0: the reference's dataset, byte for byte (one code hidden among numbered
 * lines; sha256 values in tests/unit/cli/test_niah.c). With keys = N: N codes, each for its own
 * word, among lines of random words; one is asked for. Both are functions of the options alone:
 * samples are drawn one after the other from one generator, so sample i depends on the i before it.
 *
 *     struct kk_niah g;
 *     struct kk_niah_sample s;
 *     rc = kk_niah_start(&g, &(struct kk_niah_opts){.seed = 42, .lines_min = 60, .lines_max = 80},
 * err); rc = kk_niah_next(&g, &prompt, &s, err);         as often as there are samples
 */
#ifndef KK_CLI_NIAH_H
#define KK_CLI_NIAH_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/mt19937.h"

#define KK_NIAH_MIN_LINES 10
#define KK_NIAH_MAX_LINES 9999999
#define KK_NIAH_MAX_KEYS  200

struct kk_niah_opts {
    uint64_t seed;
    int lines_min, lines_max; /* padding lines, drawn uniformly per sample */
    int keys;                 /* 0: the reference's dataset; else keyed facts */
};

struct kk_niah {
    struct kk_niah_opts opts;
    struct kk_mt19937 rng;
};

struct kk_niah_sample {
    int lines;       /* padding lines */
    int insert_at;   /* padding lines before the fact that is asked for */
    char answer[24]; /* "MAPLE-7890" */
    char word[12];   /* keyed: the word asked for; else "" */
};

/* KK_EINVAL with a sentence if an option is out of bounds. */
int kk_niah_start(struct kk_niah *g, const struct kk_niah_opts *opts, struct kk_err *err);

/* The next sample: its text replaces what prompt holds. KK_ENOMEM, KK_ERANGE (prompt's ceiling). */
int kk_niah_next(struct kk_niah *g, struct kk_buf *prompt, struct kk_niah_sample *out,
                 struct kk_err *err);

/* Score of a generated text: 1 if the answer is in it (recall), 1 if the text up to a newline or
 * its end is the answer and nothing else but blanks (recall_exact, DESIGN §7: a full stop is a
 * miss). */
int kk_niah_hit(const struct kk_niah_sample *s, const char *text);
int kk_niah_exact(const struct kk_niah_sample *s, const char *text);

#endif

/* Options: one table feeds flags, KAKEYA_* environment, the config file, --help and --print-config.
 *
 * A setting comes from the strongest place that gives it: default < file < environment < flag.
 *   flag         --name VALUE, --name=VALUE, -m VALUE; a truth is --name or --name=no
 *   environment  KAKEYA_NAME=VALUE, with _ for -
 *   file         --config FILE: lines "name = value", # comments, "quotes" around blanks
 *
 *     struct kk_config c;
 *     rc = kk_config_load(&c, KK_CMD_RUN, argc, argv, &err);      argv without program and command
 *     int threads = (int)kk_config_int(&c, KK_OPT_THREADS);
 *     kk_config_release(&c);
 *
 * The only code that reads the environment. Mistakes are KK_EUSAGE with one line that names the
 * option, the value and what is allowed. */
#ifndef KK_BASE_CONFIG_H
#define KK_BASE_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

/* Which commands an option applies to: a set of these. */
enum kk_command {
    KK_CMD_RUN = 1,
    KK_CMD_INSPECT = 2,
    KK_CMD_TOKENIZE = 4,
    KK_CMD_LOGITS = 8,
    KK_CMD_PLAN = 16,
    KK_CMD_NIAH = 32,
    KK_CMD_DECODE = 64,
    KK_CMD_SPEC = 128,
    KK_CMD_SCORECARD = 256,
    KK_CMD_CHAT = 512,
    KK_CMD_SERVE = 1024,
    KK_CMD_AGENTS = 2048,
    KK_CMD_BATCH = 4096,
    KK_CMD_PPL = 8192,
    KK_CMD_ALL = 16383
};

enum kk_option_type {
    KK_OPT_INT,
    KK_OPT_REAL,
    KK_OPT_SIZE,    /* bytes: 4096, 64KiB, 16MiB, 2GiB, 1TiB */
    KK_OPT_STRING,  /* also paths */
    KK_OPT_STRINGS, /* repeatable: each flag adds one */
    KK_OPT_ENUM,    /* one of `words` */
    KK_OPT_BOOL,
    KK_OPT_LIST,  /* integers with commas between */
    KK_OPT_REPORT /* --json (standard output) or --json=FILE; never takes the next word */
};

enum kk_option_id {
    KK_OPT_MODEL,
    KK_OPT_THREADS,
    KK_OPT_DEVICE,
    KK_OPT_CPU_ISA,
    KK_OPT_ACT,
    KK_OPT_PREFILL_CHUNK,
    KK_OPT_KV,
    KK_OPT_KV_TYPE,
    KK_OPT_KV_SINKS,
    KK_OPT_KV_WINDOW,
    KK_OPT_KV_DEVICE,
    KK_OPT_KV_HOST,
    KK_OPT_KV_STAGING,
    KK_OPT_F_THETA,
    KK_OPT_CTX,
    KK_OPT_DRAFT,
    KK_OPT_DRAFT_WIDTH,
    KK_OPT_DRAFT_DEVICE,
    KK_OPT_PROMPT,
    KK_OPT_FILE,
    KK_OPT_DECODE,
    KK_OPT_IDS_FILE,
    KK_OPT_SYSTEM,
    KK_OPT_TEMPLATE,
    KK_OPT_N,
    KK_OPT_ANSWER,
    KK_OPT_TEMP,
    KK_OPT_TOP_K,
    KK_OPT_TOP_P,
    KK_OPT_MIN_P,
    KK_OPT_REPEAT_PENALTY,
    KK_OPT_REPEAT_LAST_N,
    KK_OPT_SEED,
    KK_OPT_STOP,
    KK_OPT_IGNORE_EOS,
    KK_OPT_GRPC,
    KK_OPT_METRICS,
    KK_OPT_AUTH_TOKEN_FILE,
    KK_OPT_TLS_CERT,
    KK_OPT_TLS_KEY,
    KK_OPT_MAX_MESSAGE,
    KK_OPT_GRACE,
    KK_OPT_CAPACITY,
    KK_OPT_MAX_CALLS,
    KK_OPT_MAX_BATCH,
    KK_OPT_STEP_ROWS,
    KK_OPT_IDLE_TTL,
    KK_OPT_EVICT_IDLE,
    KK_OPT_KV_TOTAL,
    KK_OPT_IDLE_HOST,
    KK_OPT_KV_DISK,
    KK_OPT_STATE,
    KK_OPT_JOURNAL_FULL,
    KK_OPT_SESSIONS,
    KK_OPT_LINES,
    KK_OPT_TOKENS,
    KK_OPT_SAMPLES,
    KK_OPT_KEYS,
    KK_OPT_REPLAY,
    KK_OPT_DEPTHS,
    KK_OPT_REPS,
    KK_OPT_WINDOW,
    KK_OPT_WINDOWS,
    KK_OPT_AGAINST,
    KK_OPT_LEVELS,
    KK_OPT_BATCH_LEVELS,
    KK_OPT_CONTEXT_LEN,
    KK_OPT_GEN,
    KK_OPT_MIXED,
    KK_OPT_CONNECT,
    KK_OPT_TLS_CA,
    KK_OPT_TOKEN_FILE,
    KK_OPT_LABEL,
    KK_OPT_TENSORS,
    KK_OPT_PRINT_IDS,
    KK_OPT_OUT,
    KK_OPT_JSON,
    KK_OPT_SVG,
    KK_OPT_CONFIG,
    KK_OPT_PRINT_CONFIG,
    KK_OPT_HELP,
    KK_OPT_COUNT
};

struct kk_option {
    const char *name; /* "kv-type"; two options may share one if no command has both */
    char letter;      /* 'm' for -m, or 0 */
    enum kk_option_type type;
    int flag_only; /* not from environment or file */
    unsigned commands;
    double min, max;   /* of INT, REAL, and each number of a LIST; SIZE: from 0 on */
    const char *def;   /* as one would type it; NULL: unset */
    const char *words; /* ENUM: "auto|f32|bf16"; else what the value is called: "FILE" */
    const char *group, *help;
};

const struct kk_option *kk_option_at(enum kk_option_id id);

/* The i-th group, in the order of help; NULL after the last. */
const char *kk_option_group(int i);

enum kk_origin {
    KK_FROM_NOWHERE,
    KK_FROM_DEFAULT,
    KK_FROM_FILE,
    KK_FROM_ENVIRONMENT,
    KK_FROM_FLAG
};

#define KK_LIST_MAX 32

struct kk_value {
    int64_t i; /* INT, SIZE, BOOL; ENUM: index of the word */
    double d;  /* REAL */
    int n;     /* LIST, STRINGS */
    int64_t list[KK_LIST_MAX];
    const char *text[KK_LIST_MAX]; /* as typed; STRINGS: all of them, else text[0] */
};

/* Parse text into v by the option's type and bounds. KK_EUSAGE: "--threads: 'x' is not ...". text
 * must outlive v. */
int kk_option_parse(const struct kk_option *o, const char *text, struct kk_value *v,
                    struct kk_err *err);

struct kk_config {
    enum kk_command command;
    struct kk_value value[KK_OPT_COUNT];
    enum kk_origin origin[KK_OPT_COUNT];
    const char *args[8]; /* words that are no options; borrowed from argv */
    int n_args;
    struct kk_buf file;         /* text of the config file; values point into it */
    char installed_model[1024]; /* the default of --model, where there is one */
};

/* Read all four places. argv (borrowed for the life of c) holds what follows the command; name is
 * the command's, for messages. On failure c is released. */
int kk_config_load(struct kk_config *c, enum kk_command command, const char *name, int argc,
                   char *const *argv, struct kk_err *err);
void kk_config_release(struct kk_config *c);

/* One more value, over those of all places; text is borrowed. KK_EUSAGE as for a flag. */
int kk_config_change(struct kk_config *c, const char *command, const char *name, const char *text,
                     struct kk_err *err);

/* 1 if any place gave a value (a default counts). */
int kk_config_has(const struct kk_config *c, enum kk_option_id id);
/* 1 if a place other than the default did. */
int kk_config_given(const struct kk_config *c, enum kk_option_id id);
int64_t kk_config_int(const struct kk_config *c, enum kk_option_id id); /* 0 if unset */
double kk_config_real(const struct kk_config *c, enum kk_option_id id);
const char *kk_config_text(const struct kk_config *c, enum kk_option_id id); /* NULL if unset */

/* Help of a command's options, in groups, with defaults; `print-config`: name, value, origin.
 * Appended to out: KK_ENOMEM, KK_ERANGE. */
int kk_config_help(enum kk_command command, struct kk_buf *out);
int kk_config_print(const struct kk_config *c, struct kk_buf *out);

/* 1 if what is written to this file may be coloured: it is a terminal that can, and NO_COLOR is
 * not set. */
int kk_config_colour(int fd);

/* Edit distance (insert, delete, change, swap of neighbours), cut off at 99. */
int kk_edit_distance(const char *a, const char *b);

#endif

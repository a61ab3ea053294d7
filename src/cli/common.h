/* What the commands share: options to an engine, text in, reports out.
 *
 * A command is a kk_cli_fn. It prints its product on standard output, talk on standard error, and
 * leaves errors to main, which prints them and picks the exit status: 2 for KK_EUSAGE, else 1. */
#ifndef KK_CLI_COMMON_H
#define KK_CLI_COMMON_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/config.h"
#include "base/progress.h"
#include "file/file.h"
#include "kakeya.h"
#include "tok/tok.h"

#define KK_CLI_TEXT_MAX ((size_t)256 << 20)

struct kk_cli {
    struct kk_config cfg;
    struct kk_progress progress;
    int reading_quiet; /* no bar for prefills: what is measured has its own */
    struct kk_engine *engine;
    struct kk_engine_info info; /* of engine */
    struct kk_tok *tok;
};

typedef int kk_cli_fn(struct kk_cli *cli, struct kk_err *err);
kk_cli_fn kk_cli_run, kk_cli_chat, kk_cli_inspect, kk_cli_tokenize, kk_cli_logits, kk_cli_plan,
    kk_cli_bench_niah, kk_cli_bench_decode, kk_cli_bench_spec, kk_cli_bench_scorecard, kk_cli_serve,
    kk_cli_bench_agents, kk_cli_bench_batch, kk_cli_bench_ppl;

/* Close what is open. */
void kk_cli_release(struct kk_cli *cli);

/* ---- in ----------------------------------------------------------------------------------- */

/* The value of -m, or KK_EUSAGE. */
int kk_cli_model(const struct kk_cli *cli, const char **out, struct kk_err *err);
/* KK_EUSAGE naming the first word that is no option. */
int kk_cli_no_words(const struct kk_cli *cli, struct kk_err *err);

/* Engine options as the command line has them; progress goes to cli's bar. */
int kk_cli_options(struct kk_cli *cli, struct kk_engine_options *o, struct kk_err *err);
/* Fill cli->engine and cli->info. */
int kk_cli_open_engine(struct kk_cli *cli, struct kk_err *err);
/* One line on standard error if a context is longer than the model was made for. */
void kk_cli_warn_ctx(int64_t ctx, int64_t made_for);
/* Fill cli->tok from the model's directory or GGUF file. */
int kk_cli_open_tok(struct kk_cli *cli, struct kk_err *err);
/* The tokenizer in an open GGUF. KK_ENOENT: there is none. */
int kk_cli_tok_of(const struct kk_model_file *mf, struct kk_tok **out, struct kk_err *err);

/* The text of -p or the file of -f; exactly one must be given. Refuses an empty one. */
int kk_cli_text(const struct kk_cli *cli, struct kk_buf *out, struct kk_err *err);
/* --seed, or 0. */
uint64_t kk_cli_seed(const struct kk_cli *cli);

/* ---- out ---------------------------------------------------------------------------------- */

/* 1 unless JSON takes the place of the text on standard output. */
int kk_cli_wants_text(const struct kk_cli *cli);

/* Add what every report of a measurement names: model, device, kv, version, commit. */
void kk_cli_describe_run(const struct kk_cli *cli, json_t *report);

/* Write the report where --json says, if it does. Takes the reference. */
int kk_cli_report(const struct kk_cli *cli, json_t *report, struct kk_err *err);

/* A JSON string of bytes that may be no UTF-8 (then NULL becomes null in the report). */
json_t *kk_cli_json_text(const char *s, size_t n);

/* "17.3 MB"; one of four static buffers in turn. */
const char *kk_cli_bytes(int64_t n);

/* A rate, or 0 where nothing was timed. */
double kk_cli_rate(double count, double seconds);

/* What a step that took `seconds` read at least, as members of a report: step_ms, and of a model
 * with experts distinct_experts (a layer) and weight_bytes. */
void kk_cli_report_step(const struct kk_cli *cli, json_t *o, double seconds, double experts);

/* Sorts x. n >= 1. */
double kk_cli_median(double *x, int n);

#endif

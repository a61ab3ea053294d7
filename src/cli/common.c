#include "cli/common.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "kk_build.h"

void kk_cli_release(struct kk_cli *cli)
{
    kk_progress_clear(&cli->progress);
    kk_engine_close(cli->engine);
    kk_tok_close(cli->tok);
    kk_config_release(&cli->cfg);
}

/* ---- in ----------------------------------------------------------------------------------- */

int kk_cli_model(const struct kk_cli *cli, const char **out, struct kk_err *err)
{
    *out = kk_config_text(&cli->cfg, KK_OPT_MODEL);
    if (*out && **out) return 0;
    return kk_fail(err, KK_EUSAGE, "no model given: -m MODEL");
}

int kk_cli_no_words(const struct kk_cli *cli, struct kk_err *err)
{
    if (!cli->cfg.n_args) return 0;
    return kk_fail(err, KK_EUSAGE, "unexpected argument '%.64s'", cli->cfg.args[0]);
}

static void on_progress(void *arg, const char *what, uint64_t done, uint64_t total)
{
    struct kk_cli *cli = arg;
    int loading = strcmp(what, "reading") != 0;
    if (loading || !cli->reading_quiet)
        kk_progress_show(&cli->progress, what, done, total,
                         loading ? KK_PROGRESS_BYTES : KK_PROGRESS_TOKENS);
}

int kk_cli_options(struct kk_cli *cli, struct kk_engine_options *o, struct kk_err *err)
{
    const struct kk_config *c = &cli->cfg;
    *o = kk_engine_defaults();
    int rc = kk_cli_model(cli, &o->model, err);
    if (rc) return rc;
    if (kk_config_has(c, KK_OPT_THREADS)) {
        o->threads = (int)kk_config_int(c, KK_OPT_THREADS);
        o->device = kk_config_text(c, KK_OPT_DEVICE);
        o->cpu_isa = kk_config_text(c, KK_OPT_CPU_ISA);
        o->act = kk_config_text(c, KK_OPT_ACT);
        o->prefill_chunk = (int)kk_config_int(c, KK_OPT_PREFILL_CHUNK);
        o->kv = kk_config_text(c, KK_OPT_KV);
        o->kv_type = kk_config_text(c, KK_OPT_KV_TYPE);
        o->kv_sinks = (int)kk_config_int(c, KK_OPT_KV_SINKS);
        o->kv_window = (int)kk_config_int(c, KK_OPT_KV_WINDOW);
        o->kv_device = kk_config_int(c, KK_OPT_KV_DEVICE);
        o->kv_host = kk_config_int(c, KK_OPT_KV_HOST);
        o->kv_staging = (int)kk_config_int(c, KK_OPT_KV_STAGING);
        o->f_theta = kk_config_text(c, KK_OPT_F_THETA);
    }
    if (kk_config_has(c, KK_OPT_MAX_BATCH)) o->max_batch = (int)kk_config_int(c, KK_OPT_MAX_BATCH);
    o->ctx = kk_config_int(c, c->command == KK_CMD_PPL ? KK_OPT_WINDOW : KK_OPT_CTX);
    if (kk_config_has(c, KK_OPT_DRAFT)) {
        o->draft = kk_config_text(c, KK_OPT_DRAFT);
        o->draft_width = (int)kk_config_int(c, KK_OPT_DRAFT_WIDTH);
        o->draft_device = kk_config_int(c, KK_OPT_DRAFT_DEVICE);
    }
    o->progress = on_progress;
    o->progress_arg = cli;
    return 0;
}

void kk_cli_warn_ctx(int64_t ctx, int64_t made_for)
{
    if (ctx > made_for)
        fprintf(stderr,
                "kakeya: warning: a context of %lld tokens, and the model was made for %lld: what "
                "it writes beyond may be worse\n",
                (long long)ctx, (long long)made_for);
}

int kk_cli_open_engine(struct kk_cli *cli, struct kk_err *err)
{
    struct kk_engine_options o;
    int rc = kk_cli_options(cli, &o, err);
    if (!rc) rc = kk_engine_open(&o, &cli->engine, err);
    kk_progress_clear(&cli->progress);
    if (rc) return rc;
    kk_engine_describe(cli->engine, &cli->info);
    kk_cli_warn_ctx(cli->info.ctx, cli->info.made_for_ctx);
    return 0;
}

int kk_cli_tok_of(const struct kk_model_file *mf, struct kk_tok **out, struct kk_err *err)
{
    struct kk_vocab v;
    int rc = kk_model_file_vocab(mf, &v, err);
    if (!rc) rc = kk_tok_from_vocab(&v, out, err);
    kk_vocab_release(&v);
    return rc;
}

static int open_gguf_tok(struct kk_cli *cli, const char *model, struct kk_err *err)
{
    struct kk_model_file *mf = NULL;
    int rc = kk_model_file_open(model, &mf, err);
    if (rc) return rc;
    rc = kk_cli_tok_of(mf, &cli->tok, err);
    if (rc) kk_wrap(err, rc, "'%s'", model);
    kk_model_file_close(mf);
    return rc;
}

int kk_cli_open_tok(struct kk_cli *cli, struct kk_err *err)
{
    const char *model;
    int rc = kk_cli_model(cli, &model, err);
    if (rc) return rc;
    if (!strncmp(model, "synth:", 6))
        return kk_fail(err, KK_EINVAL,
                       "'%s' has no tokenizer: a synth model works with logits, plan, inspect and "
                       "bench decode",
                       model);
    if (kk_path_is_gguf(model)) return open_gguf_tok(cli, model, err);
    if (!kk_fs_is_dir(model))
        return kk_fail(err, KK_ENOENT, "'%s' is neither a model directory nor a GGUF file", model);
    return kk_tok_open_dir(model, &cli->tok, err);
}

int kk_cli_text(const struct kk_cli *cli, struct kk_buf *out, struct kk_err *err)
{
    const char *text = kk_config_text(&cli->cfg, KK_OPT_PROMPT);
    const char *file = kk_config_text(&cli->cfg, KK_OPT_FILE);
    if (!text == !file)
        return kk_fail(err, KK_EUSAGE,
                       text ? "both -p and -f are given: use one of them"
                            : "no text given: -p TEXT or -f FILE");
    int rc = text ? kk_buf_puts(out, text) : kk_fs_read(file, out, err);
    if (rc && text)
        return kk_fail(err, rc, "cannot hold a text of %zu bytes: %s", strlen(text),
                       kk_strerror(rc));
    if (rc || out->len) return rc;
    return text ? kk_fail(err, KK_EUSAGE, "the text of -p is empty")
                : kk_fail(err, KK_EINVAL, "'%s' is empty: there is nothing to read", file);
}

uint64_t kk_cli_seed(const struct kk_cli *cli)
{
    return (uint64_t)kk_config_int(&cli->cfg, KK_OPT_SEED);
}

/* ---- out ---------------------------------------------------------------------------------- */

int kk_cli_wants_text(const struct kk_cli *cli)
{
    const char *json = kk_config_text(&cli->cfg, KK_OPT_JSON);
    return !json || strcmp(json, "-") != 0;
}

void kk_cli_describe_run(const struct kk_cli *cli, json_t *report)
{
    json_object_set_new(report, "model", json_string(kk_config_text(&cli->cfg, KK_OPT_MODEL)));
    if (cli->info.device) { /* an engine was asked */
        json_object_set_new(report, "device", json_string(cli->info.device));
        json_object_set_new(report, "kv", json_string(cli->info.kv));
        json_object_set_new(report, "kv_type", json_string(cli->info.kv_type));
        json_object_set_new(report, "draft", json_string(kk_config_text(&cli->cfg, KK_OPT_DRAFT)));
    }
    json_object_set_new(report, "version", json_string(KK_VERSION));
    json_object_set_new(report, "commit", json_string(KK_COMMIT));
}

static int into_buf(const char *p, size_t n, void *arg)
{
    return kk_buf_append(arg, p, n);
}

int kk_cli_report(const struct kk_cli *cli, json_t *report, struct kk_err *err)
{
    const char *to = kk_config_text(&cli->cfg, KK_OPT_JSON);
    struct kk_buf b;
    int rc = 0;
    kk_buf_init(&b, KK_CLI_TEXT_MAX);
    if (to && (!report ||
               json_dump_callback(report, into_buf, &b, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) ||
               kk_buf_putc(&b, '\n')))
        rc = kk_fail(err, KK_ENOMEM, "out of memory for a report");
    else if (to && strcmp(to, "-") != 0)
        rc = kk_fs_write(to, b.data, b.len, err);
    else if (to)
        fwrite(b.data, 1, b.len, stdout);
    kk_buf_release(&b);
    json_decref(report);
    return rc;
}

json_t *kk_cli_json_text(const char *s, size_t n)
{
    json_t *v = json_stringn(n ? s : "", n);
    return v ? v : json_null();
}

const char *kk_cli_bytes(int64_t n)
{
    static char text[4][32];
    static int turn;
    char *out = text[turn++ & 3];
    double d = (double)n;
    if (d < 1e4)
        snprintf(out, sizeof text[0], "%lld B", (long long)n);
    else
        snprintf(out, sizeof text[0], "%.2f %s",
                 d / (d < 1e6   ? 1e3
                      : d < 1e9 ? 1e6
                                : 1e9),
                 d < 1e6   ? "kB"
                 : d < 1e9 ? "MB"
                           : "GB");
    return out;
}

double kk_cli_rate(double count, double seconds)
{
    return seconds > 0 ? count / seconds : 0;
}

void kk_cli_report_step(const struct kk_cli *cli, json_t *o, double seconds, double experts)
{
    const struct kk_engine_info *i = &cli->info;
    json_object_set_new(o, "step_ms", json_real(seconds * 1e3));
    if (!i->active_experts) return;
    json_object_set_new(o, "distinct_experts", json_real(experts));
    json_object_set_new(o, "weight_bytes",
                        json_real((double)i->step_weight_bytes +
                                  (experts - i->active_experts) * (double)i->expert_bytes));
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double kk_cli_median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

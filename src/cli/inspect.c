/* kakeya inspect: what a model is made of, and what its sessions cost. Loads no weights. */
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "cli/common.h"
#include "file/file.h"
#include "model/model.h"

struct inspect {
    struct kk_cli *cli;
    const char *model;
    struct kk_model_file *mf;
    struct kk_model_info info;
    size_t n_tensors;
    int64_t tensor_bytes;
    struct {
        int64_t tensors, bytes;
    } of_type[KK_Q6_K + 1]; /* [enum kk_dtype] */
};

/* What a session costs under one policy. */
struct policy_cost {
    const char *kv;
    int64_t at[3];    /* device bytes at INSPECT_CTX tokens; -1: over the model's context */
    int64_t at_most;  /* at the model's own context */
    double per_token; /* growth where it no longer depends on rings */
};
static const int64_t INSPECT_CTX[3] = {1024, 8192, 65536};
static const char *const policies[] = {"native", "s5", "full", "sinkwin"};
enum { N_POLICIES = sizeof policies / sizeof *policies };

static int session_bytes(struct inspect *x, const char *kv, int64_t ctx, int64_t *out,
                         struct kk_err *err)
{
    struct kk_engine_options o = kk_engine_defaults();
    struct kk_plan p;
    o.model = x->model;
    o.kv = kv;
    if (x->info.window && o.kv_window > x->info.window) o.kv_window = x->info.window;
    int rc = kk_plan_make(&o, ctx, 1, &p, err);
    if (!rc) *out = p.session_kv_bytes;
    return rc;
}

static int cost(struct inspect *x, const char *kv, struct policy_cost *out, struct kk_err *err)
{
    int64_t most = x->info.max_positions, half = most / 2, at_half = 0;
    *out = (struct policy_cost){.kv = kv};
    int rc = session_bytes(x, kv, most, &out->at_most, err);
    if (!rc) rc = session_bytes(x, kv, half ? half : 1, &at_half, err);
    if (!rc && most > half)
        out->per_token = (double)(out->at_most - at_half) / (double)(most - half);
    for (int i = 0; !rc && i < 3; i++) {
        out->at[i] = -1;
        if (INSPECT_CTX[i] <= most) rc = session_bytes(x, kv, INSPECT_CTX[i], &out->at[i], err);
    }
    return rc;
}

/* ---- text --------------------------------------------------------------------------------- */

static void print_shape(const struct kk_tensor *t, char *out, size_t cap)
{
    size_t n = (size_t)snprintf(out, cap, "[");
    for (int i = 0; i < t->rank && n < cap; i++)
        n += (size_t)snprintf(out + n, cap - n, "%s%llu", i ? ", " : "",
                              (unsigned long long)t->shape[i]);
    if (n < cap) snprintf(out + n, cap - n, "]");
}

static void print_tensors(const struct inspect *x)
{
    int all = (int)kk_config_int(&x->cli->cfg, KK_OPT_TENSORS);
    if (!x->n_tensors) return;
    printf("\ntensors          %zu, %s%s\n", x->n_tensors, kk_cli_bytes(x->tensor_bytes),
           all ? "" : " (--tensors lists them)");
    for (int k = 0; k <= KK_Q6_K; k++)
        if (x->of_type[k].tensors)
            printf("  %-5s %9lld tensors %12s  %5.1f %%\n", kk_dtype_name((enum kk_dtype)k),
                   (long long)x->of_type[k].tensors, kk_cli_bytes(x->of_type[k].bytes),
                   100.0 * (double)x->of_type[k].bytes / (double)x->tensor_bytes);
    for (size_t i = 0; all && i < x->n_tensors; i++) {
        struct kk_tensor t;
        char shape[128];
        if (kk_model_file_at(x->mf, i, &t)) continue;
        print_shape(&t, shape, sizeof shape);
        printf("  %-60s %-5s %-20s %12llu\n", t.name, kk_dtype_name(t.dtype), shape,
               (unsigned long long)t.bytes);
    }
}

/* A GGUF's keys, their values cut short. */
static void print_keys(const struct inspect *x)
{
    struct kk_buf value;
    const char *key;
    if (!kk_model_file_is_gguf(x->mf)) return;
    kk_buf_init(&value, 1 << 16);
    puts("\nkeys");
    for (size_t i = 0; !kk_model_file_meta(x->mf, i, &key, &value); i++) {
        printf("  %-42s %s\n", key, value.data);
        kk_buf_reset(&value);
    }
    kk_buf_release(&value);
}

static void print_geometry(const struct kk_model_info *i)
{
    printf("architecture     %s\n", i->architecture);
    printf("parameters       %.2f M, of which %.2f M work on a token\n", (double)i->n_params * 1e-6,
           (double)i->n_active_params * 1e-6);
    if (i->window)
        printf("layers           %d: %d sliding (window %d), %d full\n", i->n_layers,
               i->n_layers - i->n_full_layers, i->window, i->n_full_layers);
    else
        printf("layers           %d, all full\n", i->n_layers);
    printf("width            %d, %d heads, feed-forward %d\n", i->C, i->H, i->F);
    if (i->E) printf("experts          %d of width %d, %d a token\n", i->E, i->expert_F, i->A);
    printf("vocabulary       %d\n", i->V);
    printf("context          %lld tokens\n", (long long)i->max_positions);
}

static void print_tok(const struct inspect *x)
{
    const struct kk_tok *t = x->cli->tok;
    const struct kk_model_info *i = &x->info;
    if (!t) {
        printf("tokenizer        none\n");
        return;
    }
    printf("tokenizer        %u tokens", kk_tok_size(t));
    if (i->bos >= 0) {
        const char *bos = kk_tok_text(t, (uint32_t)i->bos);
        printf("; begins with %lld %s", (long long)i->bos, bos ? bos : "?");
    }
    for (int k = 0; k < i->n_eos; k++) {
        const char *eos = kk_tok_text(t, i->eos[k]);
        printf("%s%u %s", k ? ", " : "; ends with ", i->eos[k], eos ? eos : "?");
    }
    putchar('\n');
}

static void print_costs(const struct inspect *x, const struct policy_cost *c)
{
    printf("\nKV of a session on the device, by --kv\n%-10s %14s", "", "a token more");
    for (int k = 0; k < 3; k++)
        if (c->at[k] >= 0) printf(" %8lld tokens", (long long)INSPECT_CTX[k]);
    printf(" %8lld tokens\n", (long long)x->info.max_positions);
    for (int p = 0; p < N_POLICIES; p++, c++) {
        printf("%-10s %12.0f B", c->kv, c->per_token);
        for (int k = 0; k < 3; k++)
            if (c->at[k] >= 0) printf(" %15s", kk_cli_bytes(c->at[k]));
        printf(" %15s\n", kk_cli_bytes(c->at_most));
    }
    if (!x->info.window) puts("no layer slides: native, s5 and full see and keep the same rows");
}

/* ---- JSON --------------------------------------------------------------------------------- */

static json_t *json_tensors(const struct inspect *x)
{
    json_t *list = json_array();
    for (size_t i = 0; i < x->n_tensors; i++) {
        struct kk_tensor t;
        if (kk_model_file_at(x->mf, i, &t)) continue;
        json_t *o = json_object(), *shape = json_array();
        for (int k = 0; k < t.rank; k++)
            json_array_append_new(shape, json_integer((json_int_t)t.shape[k]));
        json_object_set_new(o, "name", json_string(t.name));
        json_object_set_new(o, "dtype", json_string(kk_dtype_name(t.dtype)));
        json_object_set_new(o, "shape", shape);
        json_object_set_new(o, "bytes", json_integer((json_int_t)t.bytes));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *json_types(const struct inspect *x)
{
    json_t *o = json_object();
    for (int k = 0; k <= KK_Q6_K; k++)
        if (x->of_type[k].tensors)
            json_object_set_new(o, kk_dtype_name((enum kk_dtype)k),
                                json_pack("{s:I, s:I}", "tensors",
                                          (json_int_t)x->of_type[k].tensors, "bytes",
                                          (json_int_t)x->of_type[k].bytes));
    return o;
}

static json_t *json_keys(const struct inspect *x)
{
    json_t *o = json_object();
    struct kk_buf value;
    const char *key;
    kk_buf_init(&value, 1 << 16);
    for (size_t i = 0; !kk_model_file_meta(x->mf, i, &key, &value); i++) {
        json_object_set_new(o, key, kk_cli_json_text(value.data, value.len));
        kk_buf_reset(&value);
    }
    kk_buf_release(&value);
    return o;
}

static json_t *json_costs(const struct inspect *x, const struct policy_cost *c)
{
    json_t *all = json_object();
    for (int p = 0; p < N_POLICIES; p++, c++) {
        json_t *o = json_object(), *at = json_array();
        json_object_set_new(o, "bytes_per_token", json_real(c->per_token));
        for (int k = 0; k < 4; k++) {
            int64_t ctx = k < 3 ? INSPECT_CTX[k] : x->info.max_positions;
            int64_t bytes = k < 3 ? c->at[k] : c->at_most;
            if (bytes >= 0)
                json_array_append_new(at, json_pack("{s:I, s:I}", "ctx", (json_int_t)ctx, "bytes",
                                                    (json_int_t)bytes));
        }
        json_object_set_new(o, "session_bytes", at);
        json_object_set_new(all, c->kv, o);
    }
    return all;
}

static json_t *json_geometry(const struct kk_model_info *i)
{
    json_t *eos = json_array();
    for (int k = 0; k < i->n_eos; k++) json_array_append_new(eos, json_integer(i->eos[k]));
    return json_pack(
        "{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:I, s:I, "
        "s:I, s:o}",
        "architecture", i->architecture, "layers", i->n_layers, "full_layers", i->n_full_layers,
        "window", (int)i->window, "hidden", i->C, "heads", i->H, "vocabulary", i->V, "feed_forward",
        i->F, "experts", i->E, "experts_per_token", i->A, "expert_feed_forward", i->expert_F,
        "context", (json_int_t)i->max_positions, "parameters", (json_int_t)i->n_params,
        "active_parameters", (json_int_t)i->n_active_params, "bos", (json_int_t)i->bos, "eos", eos);
}

static json_t *report(const struct inspect *x, const struct policy_cost *c)
{
    json_t *o = json_geometry(&x->info);
    json_object_set_new(o, "model", json_string(x->model));
    json_object_set_new(o, "tokenizer_size",
                        x->cli->tok ? json_integer(kk_tok_size(x->cli->tok)) : json_null());
    json_object_set_new(o, "tensor_count", json_integer((json_int_t)x->n_tensors));
    json_object_set_new(o, "tensor_bytes", json_integer(x->tensor_bytes));
    json_object_set_new(o, "types", json_types(x));
    if (kk_model_file_is_gguf(x->mf)) json_object_set_new(o, "keys", json_keys(x));
    json_object_set_new(o, "tensors", json_tensors(x));
    json_object_set_new(o, "kv", json_costs(x, c));
    return o;
}

/* ---- */

/* MODEL as a word or as -m. */
static int which(struct inspect *x, struct kk_err *err)
{
    const struct kk_config *c = &x->cli->cfg;
    x->model = c->n_args ? c->args[0] : kk_config_text(c, KK_OPT_MODEL);
    if (c->n_args > 1) return kk_fail(err, KK_EUSAGE, "unexpected argument '%.64s'", c->args[1]);
    if (c->n_args && c->origin[KK_OPT_MODEL] == KK_FROM_FLAG)
        return kk_fail(err, KK_EUSAGE, "both MODEL and -m are given: use one of them");
    if (x->model && *x->model) return 0;
    return kk_fail(err, KK_EUSAGE, "no model given: kakeya inspect MODEL");
}

/* The model's tokenizer, where it has one. */
static int open_tok(struct inspect *x, struct kk_err *err)
{
    char path[4096];
    const char *dir = kk_model_file_dir(x->mf);
    if (kk_model_file_is_gguf(x->mf)) {
        struct kk_err why;
        int rc = kk_cli_tok_of(x->mf, &x->cli->tok, &why);
        return rc && rc != KK_ENOENT ? kk_fail(err, rc, "'%s': %s", x->model, why.msg) : 0;
    }
    if (!dir) return 0;
    int rc = kk_fs_join(path, sizeof path, dir, "tokenizer.json", err);
    if (!rc && kk_fs_exists(path)) rc = kk_tok_open(path, &x->cli->tok, err);
    return rc;
}

static int open_all(struct inspect *x, struct kk_err *err)
{
    int rc = kk_model_file_open(x->model, &x->mf, err);
    if (!rc) rc = kk_model_describe(x->mf, &x->info, err);
    if (rc) return rc;
    x->n_tensors = kk_model_file_count(x->mf);
    for (size_t i = 0; i < x->n_tensors; i++) {
        struct kk_tensor t;
        if (kk_model_file_at(x->mf, i, &t)) continue;
        x->tensor_bytes += (int64_t)t.bytes;
        x->of_type[t.dtype].tensors++;
        x->of_type[t.dtype].bytes += (int64_t)t.bytes;
    }
    return open_tok(x, err);
}

int kk_cli_inspect(struct kk_cli *cli, struct kk_err *err)
{
    struct inspect x = {.cli = cli};
    struct policy_cost costs[N_POLICIES];
    int rc = which(&x, err);
    if (!rc) rc = open_all(&x, err);
    for (int p = 0; !rc && p < N_POLICIES; p++) rc = cost(&x, policies[p], &costs[p], err);
    if (!rc && kk_cli_wants_text(cli)) {
        printf("model            %s\n", x.model);
        print_geometry(&x.info);
        print_tok(&x);
        print_keys(&x);
        print_tensors(&x);
        print_costs(&x, costs);
    }
    if (!rc) rc = kk_cli_report(cli, report(&x, costs), err);
    kk_model_file_close(x.mf);
    return rc;
}

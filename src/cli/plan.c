/* kakeya plan: bytes before loading. */
#include <stdio.h>

#include "cli/common.h"

static void print_plan(const struct kk_plan *p)
{
    const struct {
        const char *what;
        int64_t bytes;
    } rows[] = {
        {"weights", p->weight_bytes},
        {"scratch", p->scratch_bytes},
        {"logits, to sample", p->logits_bytes},
        {"KV staging", p->kv_staging_bytes},
        {"f_theta", p->restorer_bytes},
        {"drafter", p->drafter_bytes},
        {"KV of one session", p->session_kv_bytes},
        {"its drafter's", p->session_draft_bytes},
        {"KV of all sessions", (p->session_kv_bytes + p->session_draft_bytes) * p->sessions},
        {"all", p->total_bytes},
        {"free now", p->free_bytes},
    };
    printf("%lld session%s of %lld tokens\n\n", (long long)p->sessions, p->sessions == 1 ? "" : "s",
           (long long)p->ctx);
    printf("%-20s %18s %12s\n", "device memory", "bytes", "");
    const size_t n = sizeof rows / sizeof *rows - (p->free_bytes == 0);
    for (size_t i = 0; i < n; i++)
        if (rows[i].bytes || i < 4) printf("%-20s %18lld %12s\n", rows[i].what, (long long)rows[i].bytes,
               kk_cli_bytes(rows[i].bytes));
}

int kk_cli_plan(struct kk_cli *cli, struct kk_err *err)
{
    struct kk_engine_options o;
    struct kk_plan p;
    int rc = kk_cli_no_words(cli, err);
    if (!rc) rc = kk_cli_options(cli, &o, err);
    if (!rc)
        rc = kk_plan_make(&o, kk_config_int(&cli->cfg, KK_OPT_CTX),
                          kk_config_int(&cli->cfg, KK_OPT_SESSIONS), &p, err);
    if (rc) return rc;
    kk_cli_warn_ctx(p.ctx, p.made_for_ctx);
    if (kk_cli_wants_text(cli)) print_plan(&p);
    json_t *r = json_object();
    json_object_set_new(r, "ctx", json_integer(p.ctx));
    json_object_set_new(r, "sessions", json_integer(p.sessions));
    json_object_set_new(r, "weight_bytes", json_integer(p.weight_bytes));
    json_object_set_new(r, "scratch_bytes", json_integer(p.scratch_bytes));
    json_object_set_new(r, "logits_bytes", json_integer(p.logits_bytes));
    json_object_set_new(r, "kv_staging_bytes", json_integer(p.kv_staging_bytes));
    json_object_set_new(r, "restorer_bytes", json_integer(p.restorer_bytes));
    json_object_set_new(r, "drafter_bytes", json_integer(p.drafter_bytes));
    json_object_set_new(r, "session_kv_bytes", json_integer(p.session_kv_bytes));
    json_object_set_new(r, "session_draft_bytes", json_integer(p.session_draft_bytes));
    json_object_set_new(r, "total_bytes", json_integer(p.total_bytes));
    if (p.free_bytes) json_object_set_new(r, "free_bytes", json_integer(p.free_bytes));
    json_object_set_new(r, "kv", json_string(o.kv));
    kk_cli_describe_run(cli, r);
    return kk_cli_report(cli, r, err);
}

/* kakeya plan: bytes before loading. */
#include <stdio.h>

#include "cli/common.h"

static void print_row(const char *what, int64_t bytes)
{
    printf("%-20s %18lld %12s\n", what, (long long)bytes, kk_cli_bytes(bytes));
}

static void print_plan(const struct kk_plan *p)
{
    printf("%lld session%s of %lld tokens\n\n", (long long)p->sessions, p->sessions == 1 ? "" : "s",
           (long long)p->ctx);
    printf("%-20s %18s %12s\n", "device memory", "bytes", "");
    print_row("weights", p->weight_bytes);
    print_row("scratch", p->scratch_bytes);
    print_row("logits, to sample", p->logits_bytes);
    print_row("KV staging", p->kv_staging_bytes);
    if (p->restorer_bytes) print_row("f_theta", p->restorer_bytes);
    if (p->drafter_bytes) print_row("drafter", p->drafter_bytes);
    print_row("KV of one session", p->session_kv_bytes);
    if (p->session_draft_bytes) print_row("its drafter's", p->session_draft_bytes);
    print_row("KV of all sessions", (p->session_kv_bytes + p->session_draft_bytes) * p->sessions);
    print_row("all", p->total_bytes);
    if (p->free_bytes) print_row("free now", p->free_bytes);
    if (!p->session_kv_host_bytes) return;
    printf("\n%-20s %18s %12s\n", "host memory", "bytes", "");
    print_row("KV of one session", p->session_kv_host_bytes);
    print_row("KV of all sessions", p->session_kv_host_bytes * p->sessions);
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
    json_object_set_new(r, "session_kv_host_bytes", json_integer(p.session_kv_host_bytes));
    json_object_set_new(r, "total_bytes", json_integer(p.total_bytes));
    if (p.free_bytes) json_object_set_new(r, "free_bytes", json_integer(p.free_bytes));
    json_object_set_new(r, "kv", json_string(o.kv));
    kk_cli_describe_run(cli, r);
    return kk_cli_report(cli, r, err);
}

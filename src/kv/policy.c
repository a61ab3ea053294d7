/* The table of named configurations, and what each means for one layer. */
#include <stdio.h>
#include <string.h>

#include "kv/kv_int.h"

/* For sliding and for full layers: what is visible besides the model's own mask, and what is
 * stored. */
static const struct {
    const char *name;
    int near_sliding, near_full; /* 1: visible only if near */
    int rebuilt;                 /* 1: sliding rows that are not near are rebuilt */
    enum kk_kv_keep sliding, full;
} policies[] = {
    {"full", 0, 0, 0, KK_KEEP_ALL, KK_KEEP_ALL},
    {"native", 0, 0, 0, KK_KEEP_WINDOW, KK_KEEP_ALL},
    {"s5", 1, 0, 0, KK_KEEP_NEAR, KK_KEEP_ALL},
    {"restored", 0, 0, 1, KK_KEEP_NEAR, KK_KEEP_ALL},
    {"sinkwin", 1, 1, 0, KK_KEEP_NEAR, KK_KEEP_NEAR},
};
enum { N_POLICIES = sizeof policies / sizeof policies[0] };

static int find_policy(const char *name)
{
    for (int i = 0; i < N_POLICIES; i++)
        if (!strcmp(policies[i].name, name)) return i;
    return -1;
}

static int check_near(const struct kk_kv_layout *layout, const struct kk_kv_options *opt,
                      struct kk_err *err)
{
    if (opt->sinks < 0 || opt->window < 1)
        return kk_fail(err, KK_EINVAL, "sinks %d and window %d: sinks must be >= 0, window >= 1",
                       opt->sinks, opt->window);
    for (int l = 0; l < layout->n_layers; l++)
        if (layout->layer[l].sliding && opt->window > layout->layer[l].window)
            return kk_fail(err, KK_EINVAL, "window %d is over the model's own window %d",
                           opt->window, layout->layer[l].window);
    return 0;
}

/* Blocks of every paged layer that a device cap leaves on the device; 0: it is below *least. */
static int32_t resident_blocks(const struct kk_kv_layout *layout, const struct kk_kv_options *opt,
                               const struct kk_kv_rule *rule, int64_t *least)
{
    return kk__tier_resident(layout, rule,
                             opt->latent_bytes * (size_t)kk__kv_latent_rows(layout, rule),
                             opt->device_cap, least);
}

static int check_cap(const struct kk_kv_layout *layout, const struct kk_kv_options *opt,
                     const struct kk_kv_rule *rule, struct kk_err *err)
{
    int64_t least;
    if (!opt->device_cap || resident_blocks(layout, opt, rule, &least)) return 0;
    return kk_fail(err, KK_EINVAL,
                   "a device cap of %lld bytes is too small: the rings and one block of %d rows of "
                   "every layer that keeps all rows take %lld",
                   (long long)opt->device_cap, KK_KV_BLOCK_ROWS, (long long)least);
}

int kk_kv_rules(const struct kk_kv_layout *layout, const struct kk_kv_options *opt,
                struct kk_kv_rule *rule, struct kk_err *err)
{
    int p = find_policy(opt->policy);
    if (p < 0)
        return kk_fail(err, KK_EINVAL,
                       "unknown KV policy '%s' (known: full, native, s5, restored, sinkwin)",
                       opt->policy);
    int uses_near = policies[p].near_sliding || policies[p].near_full || policies[p].rebuilt;
    if (uses_near) {
        int rc = check_near(layout, opt, err);
        if (rc) return rc;
    }
    for (int l = 0; l < layout->n_layers; l++) {
        const struct kk_kv_layer *y = &layout->layer[l];
        int near = y->sliding ? policies[p].near_sliding : policies[p].near_full;
        struct kk_kv_rule *r = &rule[l];
        r->keep = y->sliding ? policies[p].sliding : policies[p].full;
        r->mask = (struct kk_mask){0};
        r->mask.window = y->sliding ? y->window : KK_NO_BOUND;
        r->mask.near = near ? opt->window : KK_NO_BOUND;
        r->mask.sinks = near ? opt->sinks : 0;
        if (policies[p].rebuilt && y->sliding) {
            r->mask.exact_near = opt->window;
            r->mask.exact_sinks = opt->sinks;
            r->latent_rows = opt->latent_bytes ? y->window : 0;
            if (!opt->latent_bytes) r->keep = KK_KEEP_WINDOW;
        }
        r->sinks = r->keep == KK_KEEP_NEAR ? opt->sinks : 0;
        r->ring = r->keep == KK_KEEP_ALL ? 0 : r->keep == KK_KEEP_NEAR ? opt->window : y->window;
        r->row_bytes = (size_t)y->G * (y->value_only ? 1 : 2) * kk_dtype_size(layout->dtype, y->D);
    }
    return check_cap(layout, opt, rule, err);
}

size_t kk_kv_plan_bytes(const struct kk_kv_layout *layout, const struct kk_kv_options *opt,
                        const struct kk_kv_rule *rule, int64_t rows)
{
    int64_t least, blocks = (rows + KK_KV_BLOCK_ROWS - 1) / KK_KV_BLOCK_ROWS;
    if (opt->device_cap) blocks = resident_blocks(layout, opt, rule, &least);
    size_t total = 0;
    for (int l = 0; l < layout->n_layers; l++)
        total += kk__kv_block_bytes(&rule[l]) * (rule[l].ring ? 1 : (size_t)blocks);
    return total + opt->latent_bytes * (size_t)kk__kv_latent_rows(layout, rule);
}

size_t kk_kv_plan_host_bytes(const struct kk_kv_layout *layout, const struct kk_kv_options *opt,
                             const struct kk_kv_rule *rule, int64_t rows)
{
    int64_t least, paged = rows / KK_KV_BLOCK_ROWS;
    size_t total = 0;
    if (!opt->device_cap) return 0;
    paged -= resident_blocks(layout, opt, rule, &least) - 1;
    for (int l = 0; l < layout->n_layers && paged > 0; l++)
        if (!rule[l].ring) total += kk__kv_block_bytes(&rule[l]) * (size_t)paged;
    return total;
}

#include "cli/workload.h"

#include <stdio.h>
#include <string.h>

#include "base/rng.h"
#include "cli/niah.h"

const char *const kk_workload_names[] = {"chat", "tools", "niah", "keyed", "code", NULL};

static const char *const names[] = {"Ada",   "Boris", "Chloe", "Dmitri",
                                    "Elena", "Farid", "Grace", "Hugo"};
static const char *const cities[] = {"Lisbon", "Oslo",  "Kyoto", "Quito",
                                     "Tunis",  "Perth", "Riga",  "Lima"};
static const char *const tools[] = {"weather", "calendar", "search", "translate"};

struct draw {
    uint64_t key, at;
};
static uint32_t below(struct draw *d, uint32_t n)
{
    return (uint32_t)(kk_rng_at(d->key, d->at++) % n);
}

static int chat(struct draw *d, struct kk_buf *out)
{
    const char *who = names[below(d, 8)], *where = cities[below(d, 8)];
    int rc = 0, turns = 3 + (int)below(d, 4);
    for (int t = 0; !rc && t < turns; t++)
        rc = kk_buf_printf(
            out,
            "<start_of_turn>user\nMy friend %s lives in %s and has %u cats. Please remember "
            "it.<end_of_turn>\n<start_of_turn>model\nI will remember that %s lives in "
            "%s.<end_of_turn>\n",
            who, where, 2 + below(d, 7), who, where);
    return rc ? rc
              : kk_buf_printf(
                    out,
                    "<start_of_turn>user\nWhere does %s live?<end_of_turn>\n<start_of_turn>model\n",
                    who);
}

static int tool_calls(struct draw *d, struct kk_buf *out)
{
    int rc = 0, calls = 5 + (int)below(d, 5);
    for (int t = 0; !rc && t < calls; t++) {
        const char *tool = tools[below(d, 4)], *city = cities[below(d, 8)];
        rc = kk_buf_printf(out,
                           "{\"call\": \"%s\", \"arguments\": {\"city\": \"%s\", \"days\": %u}}\n"
                           "{\"result\": {\"city\": \"%s\", \"ok\": true}}\n",
                           tool, city, 1 + below(d, 9), city);
    }
    return rc ? rc : kk_buf_puts(out, "{\"call\": \"");
}

static int code(struct draw *d, struct kk_buf *out)
{
    static const char *const nouns[] = {"buffer", "record", "window", "parser", "socket", "header"};
    const char *n = nouns[below(d, 6)], *m = nouns[below(d, 6)];
    return kk_buf_printf(
        out,
        "import os\nimport sys\n\n\nclass %c%s(object):\n    \"\"\"A %s with a %s.\"\"\"\n\n"
        "    def __init__(self, name, size=%u):\n        self.name = name\n        self.size = "
        "size\n"
        "        self.%s = None\n\n    def read(self, size=-1):\n        if self.closed:\n"
        "            raise ValueError(\"I/O operation on closed file\")\n        return "
        "self._read(size)\n\n"
        "    def write(self, data):\n        if",
        n[0] - 32, n + 1, n, m, 1u << (4 + below(d, 8)), m);
}

static int document(uint64_t seed, int i, int keys, struct kk_buf *out, struct kk_err *err)
{
    struct kk_niah g;
    struct kk_niah_sample s;
    const struct kk_niah_opts opts = {seed + (uint64_t)i, 40, 80, keys};
    int rc = kk_niah_start(&g, &opts, err);
    return rc ? rc : kk_niah_next(&g, out, &s, err);
}

int kk_workload_text(const char *name, uint64_t seed, int i, struct kk_buf *out, struct kk_err *err)
{
    struct draw d = {kk_mix64(seed ^ kk_mix64(kk_fnv1a(name, strlen(name)) + (uint64_t)i)), 0};
    int rc = KK_EINVAL;
    if (!strcmp(name, "niah")) return document(seed, i, 0, out, err);
    if (!strcmp(name, "keyed")) return document(seed, i, 12, out, err);
    if (!strcmp(name, "chat")) rc = chat(&d, out);
    if (!strcmp(name, "tools")) rc = tool_calls(&d, out);
    if (!strcmp(name, "code")) rc = code(&d, out);
    return rc ? kk_fail(err, rc, "workload '%s': %s", name, kk_strerror(rc)) : 0;
}

/* One option's value from text, and the distance between words. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/config.h"

static int bad(const struct kk_option *o, const char *text, struct kk_err *err, const char *allowed)
{
    return kk_fail(err, KK_EUSAGE, "--%s: '%.64s' is not %s", o->name, text, allowed);
}

/* A whole number in [min, max] that ends at `end`; *out set. */
static int whole(const char *text, char end, double min, double max, int64_t *out,
                 const char **rest)
{
    char *stop;
    errno = 0;
    long long v = strtoll(text, &stop, 10);
    if (stop == text || errno || isspace((unsigned char)*text)) return -1;
    if (*stop && *stop != end) return -1;
    if ((double)v < min || (double)v > max) return -1;
    *out = v;
    *rest = stop;
    return 0;
}

/* "4 to 16", or "0 or more" where the bound is no real one. */
static const char *bounds(const struct kk_option *o, char *out, size_t cap)
{
    if (o->max >= 1e9)
        snprintf(out, cap, "a whole number, %.0f or more", o->min);
    else
        snprintf(out, cap, "a whole number from %.0f to %.0f", o->min, o->max);
    return out;
}

static int parse_int(const struct kk_option *o, const char *text, struct kk_value *v,
                     struct kk_err *err)
{
    char allowed[96];
    const char *rest;
    if (!whole(text, 0, o->min, o->max, &v->i, &rest)) return 0;
    return bad(o, text, err, bounds(o, allowed, sizeof allowed));
}

static int parse_list(const struct kk_option *o, const char *text, struct kk_value *v,
                      struct kk_err *err)
{
    char one[96], allowed[160];
    const char *at = text;
    snprintf(allowed, sizeof allowed, "a list with commas of up to %d numbers, each %s",
             KK_LIST_MAX, bounds(o, one, sizeof one));
    for (;;) {
        if (v->n == KK_LIST_MAX || whole(at, ',', o->min, o->max, &v->list[v->n], &at))
            return bad(o, text, err, allowed);
        v->n++;
        if (!*at++) return 0;
    }
}

static int parse_real(const struct kk_option *o, const char *text, struct kk_value *v,
                      struct kk_err *err)
{
    char allowed[96], *stop;
    double d = strtod(text, &stop);
    snprintf(allowed, sizeof allowed, "a number from %g to %g", o->min, o->max);
    if (stop == text || *stop || isspace((unsigned char)*text) || !isfinite(d))
        return bad(o, text, err, allowed);
    if (d < o->min || d > o->max) return bad(o, text, err, allowed);
    v->d = d;
    return 0;
}

static int parse_size(const struct kk_option *o, const char *text, struct kk_value *v,
                      struct kk_err *err)
{
    static const char *const units[] = {"", "KiB", "MiB", "GiB", "TiB"};
    char *stop;
    errno = 0;
    long long n = strtoll(text, &stop, 10);
    for (int u = 0; isdigit((unsigned char)*text) && !errno && u < 5; u++) {
        if (strcasecmp(stop, units[u])) continue;
        if (n > INT64_MAX >> (10 * u)) break;
        v->i = (int64_t)n << (10 * u);
        return 0;
    }
    return bad(o, text, err, "a size in bytes (4096, 64KiB, 16MiB, 2GiB, 1TiB)");
}

static int parse_enum(const struct kk_option *o, const char *text, struct kk_value *v,
                      struct kk_err *err)
{
    char allowed[160] = "one of ";
    const char *w = o->words;
    for (int i = 0;; i++) {
        size_t n = strcspn(w, "|"), have = strlen(allowed);
        if (strlen(text) == n && !strncmp(text, w, n)) {
            v->i = i;
            return 0;
        }
        snprintf(allowed + have, sizeof allowed - have, "%s%.*s", i ? ", " : "", (int)n, w);
        if (!w[n]) return bad(o, text, err, allowed);
        w += n + 1;
    }
}

static int parse_bool(const struct kk_option *o, const char *text, struct kk_value *v,
                      struct kk_err *err)
{
    static const char *const words[] = {"no", "yes", "false", "true", "off", "on", "0", "1"};
    for (int i = 0; i < 8; i++)
        if (!strcasecmp(text, words[i])) {
            v->i = i & 1;
            return 0;
        }
    return bad(o, text, err, "yes or no");
}

int kk_option_parse(const struct kk_option *o, const char *text, struct kk_value *v,
                    struct kk_err *err)
{
    *v = (struct kk_value){.text = {text}};
    switch (o->type) {
    case KK_OPT_INT:
        return parse_int(o, text, v, err);
    case KK_OPT_REAL:
        return parse_real(o, text, v, err);
    case KK_OPT_SIZE:
        return parse_size(o, text, v, err);
    case KK_OPT_ENUM:
        return parse_enum(o, text, v, err);
    case KK_OPT_BOOL:
        return parse_bool(o, text, v, err);
    case KK_OPT_LIST:
        return parse_list(o, text, v, err);
    case KK_OPT_STRINGS:
        v->n = 1;
        return *text ? 0 : bad(o, text, err, "a text that is not empty");
    case KK_OPT_REPORT:
        return *text ? 0 : bad(o, text, err, "a file name");
    case KK_OPT_STRING:
        break;
    }
    return 0;
}

int kk_edit_distance(const char *a, const char *b)
{
    enum { MAX = 48 };
    int row[3][MAX + 1];
    size_t n = strlen(a), m = strlen(b);
    if (n > MAX || m > MAX) return 99;
    int *before = row[0], *last = row[1], *now = row[2];
    for (size_t j = 0; j <= m; j++) last[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        now[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int d = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < d) d = last[j] + 1;
            if (now[j - 1] + 1 < d) d = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < d)
                d = before[j - 2] + 1;
            now[j] = d;
        }
        int *t = before;
        before = last;
        last = now;
        now = t;
    }
    return last[m];
}

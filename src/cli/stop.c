#include "cli/stop.h"

#include <stdint.h>
#include <string.h>

void kk_stop_init(struct kk_stop_filter *s, const char *const *text, int n)
{
    *s = (struct kk_stop_filter){.text = text, .n = n};
    kk_buf_init(&s->held, 1 << 20);
}

void kk_stop_release(struct kk_stop_filter *s)
{
    kk_buf_release(&s->held);
}

/* Where the stop string begins that is complete first (of several, the longest), or -1: so the cut
 * does not depend on the pieces. */
static int64_t first_hit(const struct kk_stop_filter *s)
{
    int64_t begin = -1, end = 0;
    for (int i = 0; i < s->n; i++) {
        size_t n = strlen(s->text[i]);
        const char *at = memmem(s->held.data, s->held.len, s->text[i], n);
        if (!at) continue;
        int64_t from = at - s->held.data, to = from + (int64_t)n;
        if (begin >= 0 && (to > end || (to == end && from > begin))) continue;
        begin = from;
        end = to;
    }
    return begin;
}

/* Length of the longest end of held that begins some stop string. */
static size_t maybe_tail(const struct kk_stop_filter *s)
{
    size_t most = 0;
    for (int i = 0; i < s->n; i++) {
        size_t n = strlen(s->text[i]) - 1;
        if (n > s->held.len) n = s->held.len;
        while (n > most && memcmp(s->held.data + s->held.len - n, s->text[i], n) != 0) n--;
        if (n > most) most = n;
    }
    return most;
}

int kk_stop_feed(struct kk_stop_filter *s, const char *piece, size_t len, struct kk_buf *out)
{
    if (s->hit || !len) return 0;
    if (!s->n) return kk_buf_append(out, piece, len);
    int rc = kk_buf_append(&s->held, piece, len);
    if (rc) return rc;
    int64_t hit = first_hit(s);
    size_t sure = hit >= 0 ? (size_t)hit : s->held.len - maybe_tail(s);
    rc = kk_buf_append(out, s->held.data, sure);
    if (rc) return rc;
    s->hit = hit >= 0;
    s->held.len -= sure;
    memmove(s->held.data, s->held.data + sure, s->held.len + 1);
    return 0;
}

int kk_stop_end(struct kk_stop_filter *s, struct kk_buf *out)
{
    if (s->hit || !s->held.len) return 0;
    int rc = kk_buf_append(out, s->held.data, s->held.len);
    kk_buf_reset(&s->held);
    return rc;
}

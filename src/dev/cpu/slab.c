/* Blocks of keys and values on huge pages. Decoding reads all of them, a page after the other: on
 * pages of 4 KiB the translations that are missing cost a sixth of attention.
 *
 * A slab is one huge page, cut into pieces of one size. Freed pieces are taken again, the last one
 * first; a slab whose pieces are all free goes back to the system. Other sizes are not ours. */
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "dev/cpu/cpu_int.h"

enum { LEAST = 16 << 10, MOST = 256 << 10 };

struct kk_cpu_slab {
    struct kk_cpu_slab *next;
    char *base;
    size_t piece, used; /* bytes: of a piece, of those that were ever taken */
    void *free;         /* freed pieces, each holding the address of the next */
    int live;           /* pieces taken */
};

int kk__slab_is_for(size_t bytes)
{
    return bytes >= LEAST && bytes <= MOST;
}

static struct kk_cpu_slab *slab_with_room(struct kk_cpu *c, size_t piece)
{
    for (struct kk_cpu_slab *s = c->slabs; s; s = s->next)
        if (s->piece == piece && (s->free || s->used + piece <= KK_CPU_HUGE_PAGE)) return s;
    return NULL;
}

static struct kk_cpu_slab *new_slab(struct kk_cpu *c, size_t piece)
{
    struct kk_cpu_slab *s = kk_calloc(1, sizeof *s);
    if (!s) return NULL;
    s->base = kk__cpu_map(KK_CPU_HUGE_PAGE);
    if (!s->base) {
        kk_free(s);
        return NULL;
    }
    s->piece = piece;
    s->next = c->slabs;
    c->slabs = s;
    return s;
}

void *kk__slab_take(struct kk_cpu *c, size_t bytes)
{
    const size_t piece = (bytes + 63) & ~(size_t)63;
    struct kk_cpu_slab *s = slab_with_room(c, piece);
    if (!s) s = new_slab(c, piece);
    if (!s) return NULL;
    s->live++;
    if (!s->free) {
        s->used += piece;
        return s->base + s->used - piece;
    }
    void *p = s->free;
    memcpy(&s->free, p, sizeof s->free);
    return memset(p, 0, piece);
}

void kk__slab_give(struct kk_cpu *c, void *p)
{
    struct kk_cpu_slab **at = &c->slabs;
    while ((char *)p < (*at)->base || (char *)p >= (*at)->base + KK_CPU_HUGE_PAGE)
        at = &(*at)->next;
    struct kk_cpu_slab *s = *at;
    memcpy(p, &s->free, sizeof s->free);
    s->free = p;
    if (--s->live) return;
    *at = s->next;
    munmap(s->base, KK_CPU_HUGE_PAGE);
    kk_free(s);
}

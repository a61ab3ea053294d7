/* Rings of rows, and how forks share them.
 *
 * A ring is one block, `base`, while nobody else holds it. A fork shares the base of its parent.
 * Who then writes takes a copy of the pieces it writes to, KK_KV_PIECE_ROWS rows each, and keeps
 * them apart; when more than half of the pieces would be apart it takes a base of its own instead,
 * and when the others have gone its pieces go back into the base that it is left with (one that has
 * a number may have others elsewhere, who come back to it: there that waits until it would be
 * copied). So a fork that says a few tokens pays for a few pieces, and a ring that is not shared is
 * in one run of memory, whatever has been.
 *
 * Invariant: a base that is the session's own has no pieces apart. */
#include <string.h>

#include "base/mem.h"
#include "kv/kv_int.h"

static int32_t n_pieces(const struct ring_shape *y)
{
    return kk__ring_pieces(y->sinks + y->size);
}

static size_t whole_bytes(const struct ring_shape *y)
{
    return (size_t)(y->sinks + y->size) * y->row_bytes;
}

static size_t piece_bytes(const struct ring_shape *y, int32_t i)
{
    const int32_t left = y->sinks + y->size - i * KK_KV_PIECE_ROWS;
    return (size_t)(left < KK_KV_PIECE_ROWS ? left : KK_KV_PIECE_ROWS) * y->row_bytes;
}

static char *in_base(const struct ring_rows *r, const struct ring_shape *y, int32_t i)
{
    return (char *)r->base + (size_t)i * KK_KV_PIECE_ROWS * y->row_bytes;
}

static int is_apart(const struct ring_rows *r, const struct ring_shape *y, int32_t i)
{
    return r->n_apart && r->piece[i] != in_base(r, y, i);
}

static int32_t slot_of(const struct ring_shape *y, int64_t j)
{
    return (int32_t)(j < y->sinks ? j : y->sinks + (j - y->sinks) % y->size);
}

char *kk__ring_run(const struct ring_rows *r, const struct ring_shape *y, int64_t j, int32_t *run)
{
    const int32_t slot = slot_of(y, j), in_piece = slot % KK_KV_PIECE_ROWS;
    int32_t n = y->sinks + y->size - slot;
    if (r->n_apart && n > KK_KV_PIECE_ROWS - in_piece) n = KK_KV_PIECE_ROWS - in_piece;
    if (*run > n) *run = n;
    if (!r->n_apart) return (char *)r->base + (size_t)slot * y->row_bytes;
    return (char *)r->piece[slot / KK_KV_PIECE_ROWS] + (size_t)in_piece * y->row_bytes;
}

void kk__ring_describe(const struct ring_rows *r, const struct ring_shape *y, struct kk_kv_seq *s)
{
    s->blocks = r->n_apart ? r->piece : (void *const *)&r->base;
    s->block_rows = r->n_apart ? KK_KV_PIECE_ROWS : y->sinks + y->size;
    s->sinks = y->sinks;
    s->ring = y->size;
}

int32_t kk__ring_entries(const struct ring_rows *r, const struct ring_shape *y)
{
    return r->n_apart ? n_pieces(y) : 1;
}

/* ---- open, close, fork -------------------------------------------------------------------- */

int kk__ring_open(struct kk_kv *kv, struct ring_rows *r, const struct ring_shape *y,
                  struct kk_err *err)
{
    return kk_dev_alloc(kv->pool->dev, &kv->device, whole_bytes(y), &r->base, err);
}

static void drop_tables(struct ring_rows *r)
{
    kk_free(r->piece);
    kk_free(r->share);
    r->piece = NULL;
    r->share = NULL;
}

static void drop_pieces(struct kk_kv *kv, struct ring_rows *r, const struct ring_shape *y)
{
    for (int32_t i = 0; r->piece && i < n_pieces(y); i++)
        if (is_apart(r, y, i)) kk__block_release(kv, r->piece[i], r->share[i], piece_bytes(y, i));
    drop_tables(r);
    r->n_apart = 0;
}

void kk__ring_close(struct kk_kv *kv, struct ring_rows *r, const struct ring_shape *y)
{
    if (!r->base) return;
    drop_pieces(kv, r, y);
    kk__block_release(kv, r->base, r->base_share, whole_bytes(y));
    *r = (struct ring_rows){0};
}

static int make_tables(struct ring_rows *r, const struct ring_shape *y, struct kk_err *err)
{
    const int32_t n = n_pieces(y);
    if (r->piece) return 0;
    r->piece = kk_array((size_t)n, sizeof *r->piece);
    r->share = kk_calloc((size_t)n, sizeof *r->share);
    if (!r->piece || !r->share) {
        drop_tables(r);
        return kk_fail(err, KK_ENOMEM, "out of memory for a KV block table");
    }
    for (int32_t i = 0; i < n; i++) r->piece[i] = in_base(r, y, i);
    return 0;
}

int kk__ring_fork(struct kk_kv *parent, struct ring_rows *from, struct ring_rows *to,
                  const struct ring_shape *y, int64_t rows, struct kk_err *err)
{
    struct kk_kv_pool *p = parent->pool;
    if (!from->base) return 0;
    int rc = kk__block_share(&parent->device, &p->shared, from->base, &from->base_share,
                             whole_bytes(y), (size_t)kk__ring_held(y, rows) * y->row_bytes, err);
    if (rc) return rc;
    to->base = from->base;
    to->base_share = from->base_share;
    if (from->n_apart) rc = make_tables(to, y, err);
    for (int32_t i = 0; !rc && from->n_apart && i < n_pieces(y); i++) {
        if (!is_apart(from, y, i)) continue;
        rc = kk__block_share(&parent->device, &p->shared, from->piece[i], &from->share[i],
                             piece_bytes(y, i), piece_bytes(y, i), err);
        if (rc) break;
        to->piece[i] = from->piece[i];
        to->share[i] = from->share[i];
        to->n_apart++;
    }
    return rc;
}

/* ---- before a write ----------------------------------------------------------------------- */

/* Nobody else holds the base: it is the session's own, with its pieces in it. */
static void take_base(struct kk_kv *kv, struct ring_rows *r, const struct ring_shape *y)
{
    for (int32_t i = 0; i < n_pieces(y); i++)
        if (is_apart(r, y, i))
            kv->pool->dev->ops->copy(kv->pool->dev, in_base(r, y, i), r->piece[i],
                                     piece_bytes(y, i));
    drop_pieces(kv, r, y);
    kk__block_unshare(kv, &r->base_share, whole_bytes(y));
}

static int copy_base(struct kk_kv *kv, struct ring_rows *r, const struct ring_shape *y,
                     struct kk_err *err)
{
    struct kk_dev *dev = kv->pool->dev;
    struct ring_rows own = {0};
    int rc = kk__ring_open(kv, &own, y, err);
    if (rc) return rc;
    if (!r->n_apart) dev->ops->copy(dev, own.base, r->base, whole_bytes(y));
    for (int32_t i = 0; r->n_apart && i < n_pieces(y); i++)
        dev->ops->copy(dev, in_base(&own, y, i), r->piece[i], piece_bytes(y, i));
    kk__ring_close(kv, r, y);
    *r = own;
    return 0;
}

static int own_piece(struct kk_kv *kv, struct ring_rows *r, const struct ring_shape *y, int32_t i,
                     struct kk_err *err)
{
    struct kk_dev *dev = kv->pool->dev;
    void *copy;
    if (is_apart(r, y, i))
        return kk__block_own(kv, &r->piece[i], &r->share[i], piece_bytes(y, i), piece_bytes(y, i),
                             err);
    int rc = make_tables(r, y, err);
    if (!rc) rc = kk_dev_alloc(dev, &kv->device, piece_bytes(y, i), &copy, err);
    if (rc) return rc;
    dev->ops->copy(dev, copy, r->piece[i], piece_bytes(y, i));
    r->piece[i] = copy;
    r->n_apart++;
    return 0;
}

/* The next piece that a write of rows [*j, end) touches; -1: no more. */
static int32_t next_touched(const struct ring_shape *y, int64_t *j, int64_t end)
{
    if (*j >= end) return -1;
    const int32_t slot = slot_of(y, *j), piece = slot / KK_KV_PIECE_ROWS;
    const int32_t stop = (piece + 1) * KK_KV_PIECE_ROWS, all = y->sinks + y->size;
    *j += (stop < all ? stop : all) - slot;
    return piece;
}

static int held_by_others(const struct ring_rows *r, int32_t i)
{
    return r->share[i] && r->share[i]->refs > 1;
}

/* Of pieces that nobody else holds */
static int64_t apart_bytes(const struct ring_rows *r, const struct ring_shape *y)
{
    int64_t n = 0;
    for (int32_t i = 0; i < n_pieces(y); i++)
        if (is_apart(r, y, i) && !held_by_others(r, i)) n += (int64_t)piece_bytes(y, i);
    return n;
}

/* What a write of rows [j, end) asks for: 1: a base of its own, 0: pieces; and the device bytes
 * that this takes. */
static int needs_base(const struct ring_rows *r, const struct ring_shape *y, int64_t j, int64_t end,
                      int64_t *bytes)
{
    const int32_t most = n_pieces(y) / 2;
    int32_t n = r->n_apart;
    *bytes = 0;
    for (int32_t i; n <= most && (i = next_touched(y, &j, end)) >= 0;) {
        const int apart = is_apart(r, y, i);
        n += !apart;
        if (!apart || held_by_others(r, i)) *bytes += (int64_t)piece_bytes(y, i);
    }
    if (n <= most) return 0;
    *bytes = (int64_t)whole_bytes(y) - apart_bytes(r, y);
    return 1;
}

int kk__ring_own(struct kk_kv *kv, struct ring_rows *r, const struct ring_shape *y, int64_t first,
                 int32_t n, struct kk_err *err)
{
    const int64_t end = first + n;
    int64_t bytes;
    int rc = 0;
    if (!r->base_share) return 0;
    const int whole = needs_base(r, y, first, end, &bytes);
    if (r->base_share->refs == 1 && (whole || !r->base_share->number)) {
        take_base(kv, r, y);
        return 0;
    }
    if (whole) return copy_base(kv, r, y, err);
    for (int32_t i; !rc && (i = next_touched(y, &first, end)) >= 0;)
        rc = own_piece(kv, r, y, i, err);
    return rc;
}

int64_t kk__ring_growth(const struct ring_rows *r, const struct ring_shape *y, int64_t first,
                        int32_t n)
{
    int64_t bytes;
    if (!r->base_share) return 0;
    const int whole = needs_base(r, y, first, first + n, &bytes);
    if (r->base_share->refs == 1 && (whole || !r->base_share->number)) return -apart_bytes(r, y);
    return bytes;
}

int64_t kk__ring_shared_bytes(const struct ring_rows *r, const struct ring_shape *y)
{
    int64_t n = r->base_share ? (int64_t)whole_bytes(y) : 0;
    for (int32_t i = 0; r->n_apart && i < n_pieces(y); i++)
        if (r->share[i]) n += (int64_t)piece_bytes(y, i);
    return n;
}

/* ---- saving and loading ------------------------------------------------------------------- */

/* The first slots, wherever they are: they are rows 0 .. rows - 1 of a ring that is not full. */
static int save_slots(struct kk__transfer *t, const struct ring_rows *r, const struct ring_shape *y,
                      int64_t rows)
{
    struct kk_dev *dev = t->kv->pool->dev;
    for (int32_t i = 0, run; i < rows; i += run) {
        run = (int32_t)rows - i;
        const char *at = kk__ring_run(r, y, i, &run);
        dev->ops->download(dev, t->bounce + (size_t)i * y->row_bytes, at,
                           (size_t)run * y->row_bytes);
    }
    return kk_io(t->io, t->bounce, (size_t)rows * y->row_bytes, t->err);
}

static int save_apart(struct kk__transfer *t, const struct ring_rows *r, const struct ring_shape *y)
{
    int rc = kk__save_mark(t, (uint32_t)r->n_apart);
    for (int32_t i = 0; !rc && r->n_apart && i < n_pieces(y); i++) {
        if (!is_apart(r, y, i)) continue;
        const int kept = kk__save_block(t, r->share[i], 0);
        if (kept < 0) return kept;
        rc = kk__save_mark(t, (uint32_t)i);
        if (!rc) rc = kk__save_mark(t, kept ? KK__SHARED : KK__OWN);
        if (!rc && !kept) rc = kk__save_bytes(t, r->piece[i], piece_bytes(y, i));
    }
    return rc;
}

int kk__ring_save(struct kk__transfer *t, const struct ring_rows *r, const struct ring_shape *y,
                  int64_t rows)
{
    if (!t->keeper) return save_slots(t, r, y, rows);
    const int kept = kk__save_block(t, r->base_share, 0);
    if (kept < 0) return kept;
    int rc = kk__save_mark(t, kept ? KK__SHARED : KK__OWN);
    if (rc) return rc;
    return kept ? save_apart(t, r, y) : save_slots(t, r, y, rows);
}

/* Piece i, which is not in the base. */
static int load_piece(struct kk__transfer *t, struct ring_rows *r, const struct ring_shape *y,
                      uint32_t i)
{
    const size_t bytes = piece_bytes(y, (int32_t)i);
    uint32_t mark;
    void *own;
    int rc = kk__load_mark(t, KK__SHARED + 1, &mark);
    if (!rc && mark == KK__SHARED) {
        rc = kk__load_block(t, bytes, bytes, 0, &r->share[i]);
        if (rc) return rc;
        r->piece[i] = r->share[i]->p;
        r->n_apart++;
        return 0;
    }
    if (!rc) rc = kk_dev_alloc(t->kv->pool->dev, &t->kv->device, bytes, &own, t->err);
    if (rc) return rc;
    r->piece[i] = own;
    r->n_apart++;
    return kk__load_bytes(t, own, bytes);
}

static int load_apart(struct kk__transfer *t, struct ring_rows *r, const struct ring_shape *y)
{
    const uint32_t pieces = (uint32_t)n_pieces(y);
    uint32_t n, i;
    int rc = kk__load_mark(t, pieces + 1, &n);
    if (!rc && n) rc = make_tables(r, y, t->err);
    while (!rc && n-- > 0) {
        rc = kk__load_mark(t, pieces, &i);
        if (!rc && is_apart(r, y, (int32_t)i))
            rc = kk_fail(t->err, KK_EFORMAT, "a saved session has piece %u of a ring twice", i);
        if (!rc) rc = load_piece(t, r, y, i);
    }
    return rc;
}

int kk__ring_load(struct kk__transfer *t, struct ring_rows *r, const struct ring_shape *y,
                  int64_t rows)
{
    uint32_t mark = KK__OWN;
    if (!whole_bytes(y)) return 0;
    int rc = t->keeper ? kk__load_mark(t, KK__SHARED + 1, &mark) : 0;
    if (!rc && mark == KK__SHARED) {
        kk__ring_close(t->kv, r, y);
        rc = kk__load_block(t, whole_bytes(y), 0, 0, &r->base_share);
        if (rc) return rc;
        r->base = r->base_share->p;
        return load_apart(t, r, y);
    }
    KK_BUG_ON(r->base_share);
    if (!rc && !r->base) rc = kk__ring_open(t->kv, r, y, t->err);
    return rc ? rc : kk__load_bytes(t, r->base, (size_t)rows * y->row_bytes);
}

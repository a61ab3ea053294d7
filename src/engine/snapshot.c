/* Sessions out of memory and back: files, page-out, fork.
 *
 * A saved session is a header, the history, the rows of the KV cache and the drafter's context, and
 * a checksum over all of it. The header says which model, KV options and drafter made the rows.
 * Rows that do not fit this engine (another policy, another number type) or that are damaged are
 * left out: the history alone is read again by the model, which costs time and changes no token.
 *
 * Version 2 is what a runtime keeps: the history is the journal's (a checksum says which one), and
 * of blocks that sessions share there is a mark in place of their bytes (kv/keep.h). */
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/hash.h"
#include "base/mem.h"
#include "engine/engine_int.h"

enum { WHOLE = 1, SHARED = 2 }; /* versions */

static const char magic[8] = "KKSESS\r\n";

struct head {
    char magic[8];
    uint32_t version, head_bytes;
    struct kk_fingerprint made_by;
    char isa[16];
    uint64_t history, rows; /* rows: 0, or history - 1 */
    uint64_t kv_bytes;      /* of all rows, shared ones too */
    uint64_t drafter_bytes; /* as they are here */
    uint64_t seed;          /* of the checksums: none of them is 0 */
    uint64_t check;         /* of all before it, and of the history */
};

/* ---- a checked stream over another ---- */

struct checked {
    const struct kk_io *under;
    int reading;
    struct kk_hash hash;
};

static int checked_fn(void *arg, void *p, size_t n, struct kk_err *err)
{
    struct checked *c = arg;
    if (!c->reading) kk_hash_add(&c->hash, p, n);
    int rc = kk_io(c->under, p, n, err);
    if (!rc && c->reading) kk_hash_add(&c->hash, p, n);
    return rc;
}

static uint64_t check_of(const struct head *h, const uint32_t *history)
{
    struct kk_hash sum;
    kk_hash_init(&sum, h->seed);
    kk_hash_add(&sum, h, offsetof(struct head, check));
    kk_hash_add(&sum, history, h->history * sizeof *history);
    return kk_hash_value(&sum);
}

/* ---- save ---- */

static void make_head(const struct kk_session *s, uint32_t version, struct head *h)
{
    memset(h, 0, sizeof *h);
    memcpy(h->magic, magic, sizeof magic);
    h->version = version;
    h->head_bytes = sizeof *h;
    h->made_by = s->e->fingerprint;
    memcpy(h->isa, s->e->dev->isa, sizeof h->isa);
    h->history = s->n;
    h->rows = (uint64_t)kk_kv_rows(s->kv);
    h->kv_bytes = (uint64_t)kk_kv_saved_bytes(s->e->pool, kk_kv_rows(s->kv));
    h->seed = WHOLE;
}

static int may_be_saved(const struct kk_session *s, struct kk_err *err)
{
    if (s->closed_for_steps || s->one_shot)
        return kk_fail(err, KK_EINVAL,
                       "the session was used for a measurement and cannot be saved");
    return kk_session_check(s, err);
}

static const struct kk_drafter_ops *saves(const struct kk_session *s)
{
    return s->drafter && s->drafter->ops->save ? s->drafter->ops : NULL;
}

int kk__session_encode(struct kk_session *s, const struct kk_io *sink, struct kk_err *err)
{
    struct head h;
    struct checked body = {.under = sink};
    const struct kk_io io = {checked_fn, &body};
    const struct kk_drafter_ops *d = saves(s);
    kk_hash_init(&body.hash, WHOLE);
    int rc = may_be_saved(s, err);
    if (rc) return rc;
    make_head(s, WHOLE, &h);
    if (d) {
        int64_t bytes = d->saved_bytes(s->drafter, err);
        if (bytes < 0) return (int)bytes;
        h.drafter_bytes = (uint64_t)bytes;
    }
    h.check = check_of(&h, s->history);
    rc = kk_io(sink, &h, sizeof h, err);
    if (!rc) rc = kk_io(sink, s->history, s->n * sizeof *s->history, err);
    if (!rc) rc = kk_kv_save(s->kv, &io, err);
    if (!rc && d) rc = d->save(s->drafter, &io, NULL, err);
    if (rc) return rc;
    uint64_t check = kk_hash_value(&body.hash);
    return kk_io(sink, &check, sizeof check, err);
}

/* Device bytes that the session takes when it comes back, but for the blocks that are kept: what
 * was shared and is kept no more is its own then. */
static int64_t own_room(const struct kk_session *s, const struct kk_saved *to)
{
    const int64_t all = kk_kv_device_bytes(s->kv) + kk_kv_shared_of(s->kv);
    const int64_t kept = kk_saved_room(to, NULL);
    return all > kept ? all - kept : 0;
}

static int keep_rows(struct kk_session *s, struct kk_kept *k, struct kk_saved *to, struct head *h,
                     struct kk_err *err)
{
    const struct kk_kv_keeper keeper = kk_kept_keeper(k, to);
    const struct kk_io sink = kk_saved_sink(to);
    struct checked body = {.under = &sink};
    const struct kk_io io = {checked_fn, &body};
    const struct kk_drafter_ops *d = saves(s);
    kk_hash_init(&body.hash, WHOLE);
    int rc = kk_kv_save_shared(s->kv, &io, &keeper, err);
    if (rc) return rc;
    to->room = own_room(s, to);
    to->apart = 1;
    const size_t before = to->n;
    if (d) rc = d->save(s->drafter, &io, &keeper, err);
    h->drafter_bytes = to->n - before;
    uint64_t check = kk_hash_value(&body.hash);
    return rc ? rc : kk_io(&sink, &check, sizeof check, err);
}

int kk__session_keep(struct kk_session *s, struct kk_kept *k, struct kk_saved *to,
                     struct kk_err *err)
{
    struct head h;
    int rc = may_be_saved(s, err);
    if (rc) return rc;
    make_head(s, SHARED, &h);
    rc = kk_saved_expect(to, sizeof h + (size_t)kk_kv_device_bytes(s->kv), err);
    const struct kk_io sink = kk_saved_sink(to);
    if (!rc) rc = kk_io(&sink, &h, sizeof h, err);
    if (!rc) rc = keep_rows(s, k, to, &h, err);
    if (rc) {
        kk_saved_release(k, to);
        return rc;
    }
    h.check = check_of(&h, s->history);
    memcpy(to->p, &h, sizeof h);
    to->mine = NULL;
    kk_saved_fit(to);
    return 0;
}

/* ---- load ---- */

static int read_head(struct kk_engine *e, const struct kk_io *source, struct head *h,
                     struct kk_err *err)
{
    int rc = kk_io(source, h, sizeof *h, err);
    if (rc) return rc;
    if (memcmp(h->magic, magic, sizeof magic))
        return kk_fail(err, KK_EFORMAT, "this is not a saved session");
    if (h->version < WHOLE || h->version > SHARED || h->head_bytes != sizeof *h)
        return kk_fail(err, KK_EUNSUPPORTED, "a saved session of version %u: this program reads %d",
                       h->version, SHARED);
    if (h->made_by.model != e->fingerprint.model)
        return kk_fail(err, KK_EINVAL, "the session was saved with another model");
    if (h->history > (uint64_t)e->ctx)
        return kk_fail(err, KK_ERANGE, "a saved session of %llu tokens, the context is %lld",
                       (unsigned long long)h->history, (long long)e->ctx);
    if (h->rows != (h->history ? h->history - 1 : 0))
        return kk_fail(err, KK_EFORMAT, "a saved session of %llu rows for %llu tokens",
                       (unsigned long long)h->rows, (unsigned long long)h->history);
    return 0;
}

static int read_history(struct kk_engine *e, const struct kk_io *source, const struct head *h,
                        uint32_t *ids, struct kk_err *err)
{
    const uint32_t V = (uint32_t)kk_model_info(e->model)->V;
    int rc = kk_io(source, ids, h->history * sizeof *ids, err);
    if (rc) return rc;
    if (check_of(h, ids) != h->check)
        return kk_fail(err, KK_EFORMAT, "the saved session is damaged: its history does not check");
    for (uint64_t i = 0; i < h->history; i++)
        if (ids[i] >= V)
            return kk_fail(err, KK_EFORMAT, "the saved session holds token %u of %u", ids[i], V);
    return 0;
}

static int fits(const struct kk_engine *e, const struct head *h)
{
    return h->made_by.rows == e->fingerprint.rows && !strncmp(h->isa, e->dev->isa, sizeof h->isa) &&
           h->kv_bytes == (uint64_t)kk_kv_saved_bytes(e->pool, (int64_t)h->rows);
}

/* The rows, and the drafter's context where this engine has the same drafter. */
static int read_rows(struct kk_session *s, const struct kk_io *source,
                     const struct kk_kv_keeper *keeper, const struct head *h, struct kk_err *err)
{
    struct checked body = {.under = source, .reading = 1};
    const struct kk_io io = {checked_fn, &body};
    const struct kk_drafter_ops *d = s->drafter ? s->drafter->ops : NULL;
    uint64_t check;
    kk_hash_init(&body.hash, WHOLE);
    int rc = kk_kv_load_shared(s->kv, (int64_t)h->rows, &io, keeper, err);
    if (!rc && d && d->load && h->made_by.drafter == s->e->fingerprint.drafter &&
        h->drafter_bytes) {
        rc = d->load(s->drafter, &io, keeper, err);
    } else { /* read past it: the checksum covers it */
        char skip[4096];
        for (uint64_t left = h->drafter_bytes, n; !rc && left; left -= n) {
            n = left < sizeof skip ? left : sizeof skip;
            rc = kk_io(&io, skip, (size_t)n, err);
        }
    }
    if (!rc) rc = kk_io(source, &check, sizeof check, err);
    if (!rc && check != kk_hash_value(&body.hash))
        rc = kk_fail(err, KK_EFORMAT, "the saved session is damaged: its rows do not check");
    return rc;
}

static int set_history(struct kk_session *s, const uint32_t *ids, size_t n, struct kk_err *err)
{
    int rc = kk__history_reserve(s, n, err);
    if (rc) return rc;
    if (n) memcpy(s->history, ids, n * sizeof *ids);
    s->n = n;
    return 0;
}

/* What comes after a head of version WHOLE. */
static int decode_whole(struct kk_engine *e, const struct kk_io *source, const struct head *h,
                        int reread, struct kk_session **out, struct kk_err *err)
{
    struct kk_session *s = NULL;
    uint32_t *ids = kk_array(h->history + 1, sizeof *ids);
    if (!ids) return kk_fail(err, KK_ENOMEM, "out of memory for a saved session");
    int rc = read_history(e, source, h, ids, err);
    if (!rc) rc = kk_session_open(e, &s, err);
    if (!rc && fits(e, h)) {
        int broken = read_rows(s, source, NULL, h, reread ? NULL : err);
        if (!broken) {
            rc = set_history(s, ids, h->history, err);
        } else if (reread) {
            kk_session_close(s);
            s = NULL;
            rc = kk_session_open(e, &s, err);
        } else {
            rc = broken;
        }
    } else if (!rc && !reread) {
        rc = kk_fail(err, KK_EUNSUPPORTED, "the saved rows are of another engine");
    }
    if (!rc && s->n < h->history) rc = kk_session_append(s, ids, h->history, err);
    kk_free(ids);
    if (rc) {
        kk_session_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

int kk__session_decode(struct kk_engine *e, const struct kk_io *source, int reread,
                       struct kk_session **out, struct kk_err *err)
{
    struct head h;
    int rc = read_head(e, source, &h, err);
    if (rc) return rc;
    if (h.version != WHOLE)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "this is a part of a state directory, no whole session");
    return decode_whole(e, source, &h, reread, out, err);
}

static int decode_shared(struct kk_engine *e, struct kk_saved *from, struct kk_kept *k,
                         const struct head *h, const uint32_t *history, struct kk_session **out,
                         struct kk_err *err)
{
    const struct kk_kv_keeper keeper = kk_kept_keeper(k, from);
    const struct kk_io source = kk_saved_source(from);
    struct kk_session *s = NULL;
    if (check_of(h, history) != h->check)
        return kk_fail(err, KK_EFORMAT, "the saved rows are of another history");
    if (!fits(e, h)) return kk_fail(err, KK_EUNSUPPORTED, "the saved rows are of another engine");
    int rc = kk__session_open(e, 1, &s, err);
    from->at = sizeof *h;
    if (!rc) rc = read_rows(s, &source, &keeper, h, err);
    if (!rc) rc = set_history(s, history, h->history, err);
    if (rc) {
        kk_session_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

int kk__session_return(struct kk_engine *e, struct kk_kept *k, struct kk_saved *from,
                       const uint32_t *history, size_t n, struct kk_session **out,
                       struct kk_err *err)
{
    const struct kk_io source = kk_saved_source(from);
    struct kk_session *s = NULL;
    struct head h;
    int rc = read_head(e, &source, &h, err);
    if (!rc && (!h.history || h.history > n))
        rc = kk_fail(err, KK_EFORMAT, "saved rows of %llu tokens for a history of %zu",
                     (unsigned long long)h.history, n);
    if (!rc)
        rc = h.version == SHARED ? decode_shared(e, from, k, &h, history, &s, err)
                                 : decode_whole(e, &source, &h, 0, &s, err);
    if (!rc && memcmp(s->history, history, s->n * sizeof *history))
        rc = kk_fail(err, KK_EFORMAT, "the saved rows are of another history");
    if (rc)
        kk_session_close(s);
    else
        *out = s;
    return rc;
}

/* ---- files ---- */

static int to_file(void *arg, void *p, size_t n, struct kk_err *err)
{
    return kk_fs_out_write(arg, p, n, err);
}

static int from_file(void *arg, void *p, size_t n, struct kk_err *err)
{
    if (fread(p, 1, n, arg) == n) return 0;
    return kk_fail(err, KK_EFORMAT, "the file is truncated");
}

int kk_session_save(struct kk_session *s, const char *path, struct kk_err *err)
{
    struct kk_fs_out o;
    int rc = kk_fs_out_open(path, &o, err);
    if (rc) return rc;
    return kk_fs_out_close(&o, kk__session_encode(s, &(struct kk_io){to_file, &o}, err), err);
}

int kk_session_load(struct kk_engine *e, const char *path, struct kk_session **out,
                    struct kk_err *err)
{
    FILE *f = fopen(path, "rb");
    if (!f) return kk_fail(err, KK_ENOENT, "cannot open '%s': %m", path);
    int rc = kk__session_decode(e, &(struct kk_io){from_file, f}, 1, out, err);
    fclose(f);
    return rc ? kk_wrap(err, rc, "'%s'", path) : 0;
}

/* ---- fork ---- */

int kk_session_fork(struct kk_session *s, struct kk_session **out, struct kk_err *err)
{
    struct kk_session *f = kk_calloc(1, sizeof *f);
    if (!f) return kk_fail(err, KK_ENOMEM, "out of memory for a session");
    f->e = s->e;
    int rc = 0;
    if (s->closed_for_steps || s->one_shot)
        rc = kk_fail(err, KK_EINVAL, "the session was used for a measurement and cannot be forked");
    if (!rc) rc = kk_kv_fork(s->kv, &f->kv, err);
    if (!rc && s->drafter && s->drafter->ops->fork)
        rc = s->drafter->ops->fork(s->drafter, &f->drafter, err);
    if (!rc && !f->drafter) rc = kk__drafter_open(s->e, &f->drafter, err);
    if (!rc) rc = kk__history_reserve(f, s->n, err);
    if (rc) {
        kk_session_close(f);
        return rc;
    }
    if (s->n) memcpy(f->history, s->history, s->n * sizeof *s->history);
    f->n = s->n;
    f->width = s->width;
    rc = kk_session_set_eos(f, s->eos, s->n_eos, err);
    if (rc) {
        kk_session_close(f);
        return rc;
    }
    *out = f;
    return 0;
}

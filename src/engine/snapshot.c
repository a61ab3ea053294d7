/* Sessions out of memory and back: files, page-out, fork.
 *
 * A saved session is a header, the history, the rows of the KV cache and the drafter's context, and
 * a checksum over all of it. The header says which model, KV options and drafter made the rows.
 * Rows that do not fit this engine (another policy, another number type) or that are damaged are
 * left out: the history alone is read again by the model, which costs time and changes no token. */
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/hash.h"
#include "base/mem.h"
#include "engine/engine_int.h"

enum { VERSION = 1 };

static const char magic[8] = "KKSESS\r\n";

struct head {
    char magic[8];
    uint32_t version, head_bytes;
    struct kk_fingerprint made_by;
    char isa[16];
    uint64_t history, rows, kv_bytes, drafter_bytes; /* rows: 0, or history - 1 */
    uint64_t seed;                                   /* of the checksums: none of them is 0 */
    uint64_t check;                                  /* of all before it, and of the history */
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

static int make_head(struct kk_session *s, struct head *h, struct kk_err *err)
{
    const struct kk_drafter_ops *d = s->drafter ? s->drafter->ops : NULL;
    memset(h, 0, sizeof *h);
    memcpy(h->magic, magic, sizeof magic);
    h->version = VERSION;
    h->head_bytes = sizeof *h;
    h->made_by = s->e->fingerprint;
    memcpy(h->isa, s->e->dev->isa, sizeof h->isa);
    h->history = s->n;
    h->rows = (uint64_t)kk_kv_rows(s->kv);
    h->kv_bytes = (uint64_t)kk_kv_saved_bytes(s->e->pool, kk_kv_rows(s->kv));
    h->seed = VERSION;
    if (d && d->save) {
        int64_t bytes = d->saved_bytes(s->drafter, err);
        if (bytes < 0) return (int)bytes;
        h->drafter_bytes = (uint64_t)bytes;
    }
    h->check = check_of(h, s->history);
    return 0;
}

int kk__session_encode(struct kk_session *s, const struct kk_io *sink, struct kk_err *err)
{
    struct head h;
    struct checked body = {.under = sink};
    const struct kk_io io = {checked_fn, &body};
    kk_hash_init(&body.hash, VERSION);
    if (s->closed_for_steps || s->one_shot)
        return kk_fail(err, KK_EINVAL,
                       "the session was used for a measurement and cannot be saved");
    int rc = kk_session_check(s, err);
    if (!rc) rc = make_head(s, &h, err);
    if (!rc) rc = kk_io(sink, &h, sizeof h, err);
    if (!rc) rc = kk_io(sink, s->history, s->n * sizeof *s->history, err);
    if (!rc) rc = kk_kv_save(s->kv, &io, err);
    if (!rc && h.drafter_bytes) rc = s->drafter->ops->save(s->drafter, &io, err);
    if (rc) return rc;
    uint64_t check = kk_hash_value(&body.hash);
    return kk_io(sink, &check, sizeof check, err);
}

int64_t kk__session_encoded_bytes(struct kk_session *s, struct kk_err *err)
{
    struct head h;
    int rc = make_head(s, &h, err);
    if (rc) return rc;
    return (int64_t)(sizeof h + s->n * sizeof *s->history + h.kv_bytes + h.drafter_bytes +
                     sizeof(uint64_t));
}

/* ---- load ---- */

static int read_head(struct kk_engine *e, const struct kk_io *source, struct head *h,
                     struct kk_err *err)
{
    int rc = kk_io(source, h, sizeof *h, err);
    if (rc) return rc;
    if (memcmp(h->magic, magic, sizeof magic))
        return kk_fail(err, KK_EFORMAT, "this is not a saved session");
    if (h->version != VERSION || h->head_bytes != sizeof *h)
        return kk_fail(err, KK_EUNSUPPORTED, "a saved session of version %u: this program reads %d",
                       h->version, VERSION);
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
static int read_rows(struct kk_session *s, const struct kk_io *source, const struct head *h,
                     struct kk_err *err)
{
    struct checked body = {.under = source, .reading = 1};
    const struct kk_io io = {checked_fn, &body};
    const struct kk_drafter_ops *d = s->drafter ? s->drafter->ops : NULL;
    uint64_t check;
    kk_hash_init(&body.hash, VERSION);
    int rc = kk_kv_load(s->kv, (int64_t)h->rows, &io, err);
    if (!rc && d && d->load && h->made_by.drafter == s->e->fingerprint.drafter &&
        h->drafter_bytes) {
        rc = d->load(s->drafter, &io, err);
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

int kk__session_decode(struct kk_engine *e, const struct kk_io *source, int reread,
                       struct kk_session **out, struct kk_err *err)
{
    struct head h;
    struct kk_session *s = NULL;
    uint32_t *ids = NULL;
    int rc = read_head(e, source, &h, err);
    if (rc) return rc;
    ids = kk_array(h.history + 1, sizeof *ids);
    if (!ids) return kk_fail(err, KK_ENOMEM, "out of memory for a saved session");
    rc = read_history(e, source, &h, ids, err);
    if (!rc) rc = kk_session_open(e, &s, err);
    if (!rc && fits(e, &h)) {
        int broken = read_rows(s, source, &h, reread ? NULL : err);
        if (!broken) {
            rc = kk__history_reserve(s, h.history, err);
            if (!rc && h.history) memcpy(s->history, ids, h.history * sizeof *ids);
            if (!rc) s->n = h.history;
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
    if (!rc && s->n < h.history) rc = kk_session_append(s, ids, h.history, err);
    kk_free(ids);
    if (rc) {
        kk_session_close(s);
        return rc;
    }
    *out = s;
    return 0;
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

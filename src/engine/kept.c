#include "engine/kept.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"

enum { LISTS = 1 << 12, VERSION = 1, MOST_BLOCKS = 1 << 24 };

static const char blocks_magic[8] = "KKBLOCK\n", refs_magic[8] = "KKREFS\r\n";
static const char prefix[] = "blocks.";

/* A block: in host memory, in a file, or both. */
struct kept_block {
    struct kept_block *next, *in_file; /* in the table; of the same file */
    uint64_t number;
    size_t bytes, room;
    int lasting;
    int refs;   /* saved sessions in host memory */
    void *data; /* NULL: not in host memory */
    struct kept_file *file;
    uint64_t at; /* in its contents */
};

struct kept_file {
    struct kept_file *next;
    struct kept_block *first;
    uint64_t number;
    int refs; /* sessions' files that name it */
    int broken;
};

struct kk_kept {
    struct kk_spool *spool;
    uint64_t *number;
    struct kept_file *files;
    int64_t host_bytes;
    struct kept_block *list[LISTS];
};

/* A file of blocks: this, an entry for each block, the blocks. */
struct blocks_head {
    char magic[8];
    uint32_t version, n;
};
struct blocks_entry {
    uint64_t number, bytes, room, lasting;
};
/* The end of a session's file, after the numbers of its blocks and of their files. */
struct refs_tail {
    char magic[8];
    uint32_t n_blocks, n_files;
    int64_t room;
    uint64_t own; /* bytes before the numbers */
};

/* ---- blocks ------------------------------------------------------------------------------- */

static struct kept_block **list_of(struct kk_kept *k, uint64_t number)
{
    return &k->list[kk_mix64(number) % LISTS];
}

static struct kept_block *find(struct kk_kept *k, uint64_t number)
{
    struct kept_block *b = *list_of(k, number);
    while (b && b->number != number) b = b->next;
    return b;
}

static struct kept_block *add(struct kk_kept *k, uint64_t number)
{
    struct kept_block *b = kk_calloc(1, sizeof *b), **list = list_of(k, number);
    if (!b) return NULL;
    b->number = number;
    b->next = *list;
    *list = b;
    return b;
}

/* Forget what nobody refers to. */
static void settle(struct kk_kept *k, struct kept_block *b)
{
    if (b->refs) return;
    if (b->data) k->host_bytes -= (int64_t)b->bytes;
    kk_free(b->data);
    b->data = NULL;
    if (b->file) return;
    struct kept_block **at = list_of(k, b->number);
    while (*at != b) at = &(*at)->next;
    *at = b->next;
    kk_free(b);
}

int64_t kk_kept_host_bytes(const struct kk_kept *k)
{
    return k->host_bytes;
}

/* ---- saved sessions ----------------------------------------------------------------------- */

int kk_saved_expect(struct kk_saved *s, size_t more, struct kk_err *err)
{
    size_t cap = s->cap + s->cap / 2;
    if (more <= s->cap - s->n) return 0;
    if (cap < s->n + more) cap = s->n + more;
    char *p = kk_realloc(s->p, cap, 1);
    if (!p) return kk_fail(err, KK_ENOMEM, "out of memory to page a session out");
    s->p = p;
    s->cap = cap;
    return 0;
}

void kk_saved_fit(struct kk_saved *s)
{
    char *p = s->n < s->cap ? kk_realloc(s->p, s->n, 1) : NULL;
    if (!p) return;
    s->p = p;
    s->cap = s->n;
}

static int sink(void *arg, void *p, size_t n, struct kk_err *err)
{
    struct kk_saved *s = arg;
    int rc = kk_saved_expect(s, n, err);
    if (rc) return rc;
    memcpy(s->p + s->n, p, n);
    s->n += n;
    return 0;
}

struct kk_io kk_saved_sink(struct kk_saved *s)
{
    return (struct kk_io){sink, s};
}

static int source(void *arg, void *p, size_t n, struct kk_err *err)
{
    struct kk_saved *s = arg;
    if (n > s->n - s->at) return kk_fail(err, KK_EFORMAT, "a saved session is cut short");
    if (s->own) {
        int rc = kk_spool_range(s->own, s->at, p, n, err);
        if (rc) return rc;
    } else {
        memcpy(p, s->p + s->at, n);
    }
    s->at += n;
    return 0;
}

struct kk_io kk_saved_source(struct kk_saved *s)
{
    s->at = 0;
    s->next = 0;
    return (struct kk_io){source, s};
}

void kk_saved_release(struct kk_kept *k, struct kk_saved *s)
{
    for (int i = 0; i < s->n_blocks; i++) {
        s->block[i]->refs--;
        settle(k, s->block[i]);
    }
    kk_spool_end(s->own);
    kk_spool_end(s->blocks);
    kk_free(s->block);
    kk_free(s->p);
    *s = (struct kk_saved){0};
}

int64_t kk_saved_shared_bytes(const struct kk_saved *s)
{
    int64_t n = 0;
    for (int i = 0; i < s->n_blocks; i++) n += (int64_t)s->block[i]->bytes;
    return n;
}

int64_t kk_saved_room(const struct kk_saved *s, const struct kk_kv_pool *pool)
{
    int64_t n = s->room;
    for (int i = 0; i < s->n_blocks; i++)
        if (!pool || !kk_kv_holds(pool, s->block[i]->number)) n += (int64_t)s->block[i]->room;
    return n;
}

static int refer(struct kk_saved *s, struct kept_block *b, struct kk_err *err)
{
    if (s->n_blocks == s->cap_blocks) {
        const int cap = s->cap_blocks ? 2 * s->cap_blocks : 64;
        struct kept_block **p = kk_realloc(s->block, (size_t)cap, sizeof *p);
        if (!p) return kk_fail(err, KK_ENOMEM, "out of memory to page a session out");
        s->block = p;
        s->cap_blocks = cap;
    }
    s->block[s->n_blocks++] = b;
    b->refs++;
    return 0;
}

/* ---- what the KV cache asks --------------------------------------------------------------- */

/* Somebody else, in host memory or on disk, refers to b, or may as well do so. */
static int is_wanted(const struct kk_saved *s, const struct kept_block *b)
{
    int mine = 0;
    for (int i = 0; s->mine && i < s->mine->n_files; i++) mine += s->mine->file[i] == b->file;
    return b->refs || (b->file && (b->lasting || b->file->refs > mine));
}

static int keep(void *arg, struct kk_kv_kept *what, void **into, struct kk_err *err)
{
    struct kk_saved *s = arg;
    struct kk_kept *k = s->k;
    struct kept_block *b = what->number ? find(k, what->number) : NULL;
    if (what->sole && !(b && is_wanted(s, b))) return KK_ENOENT;
    if (!what->number) what->number = ++*k->number;
    if (!b) b = add(k, what->number);
    if (!b) return kk_fail(err, KK_ENOMEM, "out of memory to page a session out");
    b->bytes = what->bytes;
    b->room = s->apart ? 0 : what->room;
    b->lasting = what->lasting;
    int rc = refer(s, b, err);
    *into = NULL;
    if (!rc && !b->data && (!b->file || s->in_memory)) {
        *into = b->data = kk_malloc(b->bytes);
        if (!b->data) rc = kk_fail(err, KK_ENOMEM, "out of memory to page a session out");
        if (!rc) k->host_bytes += (int64_t)b->bytes;
    }
    if (rc) settle(k, b);
    return rc;
}

static int next(void *arg, struct kk_kv_kept *what, struct kk_err *err)
{
    struct kk_saved *s = arg;
    if (s->next == s->n_blocks)
        return kk_fail(err, KK_EFORMAT, "a saved session refers to more blocks than it names");
    const struct kept_block *b = s->block[s->next++];
    *what = (struct kk_kv_kept){.number = b->number, .bytes = b->bytes, .room = b->room};
    return 0;
}

static void name_of(const struct kept_file *f, char name[KK_SPOOL_NAME + 1])
{
    snprintf(name, KK_SPOOL_NAME + 1, "%s%" PRIu64, prefix, f->number);
}

/* Nothing new refers to a file. */
static void detach(struct kk_kept *k, struct kept_file *f)
{
    while (f->first) {
        struct kept_block *b = f->first;
        f->first = b->in_file;
        b->in_file = NULL;
        b->file = NULL;
        settle(k, b);
    }
}

static void break_file(struct kk_kept *k, struct kept_file *f)
{
    f->broken = 1;
    detach(k, f);
}

static int fetch(void *arg, const struct kk_kv_kept *what, void *room, const void **from,
                 struct kk_err *err)
{
    struct kk_saved *s = arg;
    const struct kept_block *b = s->block[s->next - 1];
    char name[KK_SPOOL_NAME + 1];
    int rc = 0;
    *from = b->data;
    if (b->data) return 0;
    struct kept_file *f = b->file;
    if (!f) return kk_fail(err, KK_EFORMAT, "shared block %" PRIu64 " is gone", b->number);
    if (s->blocks_file != f) {
        kk_spool_end(s->blocks);
        s->blocks = NULL;
        s->blocks_file = NULL;
        name_of(f, name);
        rc = kk_spool_read(s->k->spool, name, &s->blocks, err);
        if (!rc) s->blocks_file = f;
    }
    if (!rc) rc = kk_spool_range(s->blocks, b->at, room, what->bytes, err);
    *from = room;
    if (rc == KK_EFORMAT || rc == KK_ENOENT || rc == KK_EIO) {
        break_file(s->k, f);
        return KK_EFORMAT;
    }
    return rc;
}

struct kk_kv_keeper kk_kept_keeper(struct kk_kept *k, struct kk_saved *s)
{
    s->k = k;
    return (struct kk_kv_keeper){keep, next, fetch, s};
}

/* ---- files -------------------------------------------------------------------------------- */

static struct kept_file *new_file(struct kk_kept *k, uint64_t number)
{
    struct kept_file *f = kk_calloc(1, sizeof *f);
    if (!f) return NULL;
    f->number = number;
    f->next = k->files;
    k->files = f;
    return f;
}

static void remove_file(struct kk_kept *k, struct kept_file *f)
{
    char name[KK_SPOOL_NAME + 1];
    struct kept_file **at = &k->files;
    while (*at != f) at = &(*at)->next;
    *at = f->next;
    detach(k, f);
    name_of(f, name);
    kk_spool_remove(k->spool, name, NULL);
    kk_free(f);
}

static void unrefer(struct kk_kept *k, struct kk_snapshot *f)
{
    for (int i = 0; i < f->n_files; i++)
        if (--f->file[i]->refs == 0) remove_file(k, f->file[i]);
    kk_free(f);
}

void kk_kept_remove(struct kk_kept *k, struct kk_snapshot *f)
{
    if (!f) return;
    kk_spool_remove(k->spool, f->name, NULL);
    unrefer(k, f);
}

void kk_kept_failed(struct kk_kept *k, struct kk_snapshot *f)
{
    char name[KK_SPOOL_NAME + 1];
    for (int i = 0; i < f->n_files; i++) {
        name_of(f->file[i], name);
        if (!kk_spool_has(k->spool, name)) break_file(k, f->file[i]);
    }
    unrefer(k, f);
}

void kk_kept_forget(struct kk_snapshot *f)
{
    kk_free(f);
}

static struct kk_snapshot *snapshot(const char *name, int64_t tokens, int n_files)
{
    struct kk_snapshot *f = kk_calloc(1, sizeof *f + (size_t)n_files * sizeof *f->file);
    if (!f) return NULL;
    snprintf(f->name, sizeof f->name, "%s", name);
    f->tokens = tokens;
    return f;
}

struct kk_snapshot *kk_snapshot_new(const char *name, int64_t tokens)
{
    return snapshot(name, tokens, 0);
}

/* ---- writing ------------------------------------------------------------------------------ */

/* Those blocks of s that are in no file yet, and last or do not, as one file. */
static int write_blocks(struct kk_kept *k, const struct kk_saved *s, int lasting,
                        struct kk_err *err)
{
    struct blocks_head h = {.version = VERSION};
    char name[KK_SPOOL_NAME + 1];
    size_t bytes = 0;
    memcpy(h.magic, blocks_magic, sizeof h.magic);
    for (int i = 0; i < s->n_blocks; i++)
        if (!s->block[i]->file && s->block[i]->lasting == lasting) {
            h.n++;
            bytes += s->block[i]->bytes;
        }
    if (!h.n) return 0;
    uint64_t at = sizeof h + h.n * sizeof(struct blocks_entry);
    struct kept_file *f = new_file(k, ++*k->number);
    char *p = f ? kk_malloc(at + bytes) : NULL, *entry;
    if (!p) {
        if (f) remove_file(k, f);
        return kk_fail(err, KK_ENOMEM, "out of memory to write a session");
    }
    entry = p + sizeof h;
    memcpy(p, &h, sizeof h);
    for (int i = 0; i < s->n_blocks; i++) {
        struct kept_block *b = s->block[i];
        if (b->file || b->lasting != lasting) continue;
        const struct blocks_entry e = {b->number, b->bytes, b->room, (uint64_t)lasting};
        KK_BUG_ON(!b->data);
        memcpy(entry, &e, sizeof e);
        memcpy(p + at, b->data, b->bytes);
        b->file = f;
        b->at = at;
        b->in_file = f->first;
        f->first = b;
        entry += sizeof e;
        at += b->bytes;
    }
    name_of(f, name);
    const int64_t ticket = kk_spool_write(k->spool, name, p, at, err);
    if (ticket > 0) return 0;
    kk_free(p);
    remove_file(k, f);
    return (int)ticket;
}

/* The files that s needs, each once, into file [s->n_blocks]. */
static int files_of(const struct kk_saved *s, struct kept_file **file)
{
    int n = 0;
    for (int i = 0; i < s->n_blocks; i++) {
        int j = 0;
        while (j < n && file[j] != s->block[i]->file) j++;
        if (j == n) file[n++] = s->block[i]->file;
    }
    return n;
}

/* What comes after a session's own bytes, at p; its length if p is NULL. */
static size_t put_refs(const struct kk_saved *s, struct kept_file *const *file, int n, char *p)
{
    const struct refs_tail t = {
        .n_blocks = (uint32_t)s->n_blocks, .n_files = (uint32_t)n, .room = s->room, .own = s->n};
    const size_t bytes = ((size_t)s->n_blocks + (size_t)n) * sizeof(uint64_t) + sizeof t;
    if (!p) return bytes;
    for (int i = 0; i < s->n_blocks; i++, p += sizeof(uint64_t))
        memcpy(p, &s->block[i]->number, sizeof(uint64_t));
    for (int i = 0; i < n; i++, p += sizeof(uint64_t))
        memcpy(p, &file[i]->number, sizeof(uint64_t));
    memcpy(p, &t, sizeof t);
    memcpy(p, refs_magic, sizeof refs_magic);
    return bytes;
}

/* The session's own file: out->file [out->n_files] is there or on its way. */
static int write_own(struct kk_kept *k, struct kk_saved *s, const struct kk_snapshot *out, int take,
                     struct kk_err *err)
{
    const size_t refs = put_refs(s, out->file, out->n_files, NULL);
    char *p = NULL, *needs = kk_calloc((size_t)out->n_files + 1, KK_SPOOL_NAME + 1), *name = needs;
    int64_t ticket = KK_ENOMEM;
    for (int i = 0; needs && i < out->n_files; i++) {
        name_of(out->file[i], name);
        name += strlen(name) + 1;
    }
    if (needs && take && !kk_saved_expect(s, refs, NULL)) p = s->p;
    if (needs && !take) p = kk_malloc(s->n + refs);
    if (p) {
        if (!take) memcpy(p, s->p, s->n);
        put_refs(s, out->file, out->n_files, p + s->n);
        ticket = kk_spool_write_after(k->spool, out->name, p, s->n + refs, needs, err);
    } else {
        kk_fail(err, KK_ENOMEM, "out of memory to write a session");
    }
    kk_free(needs);
    if (ticket < 0 && !take) kk_free(p);
    if (ticket < 0) return (int)ticket;
    if (take) s->p = NULL;
    return 0;
}

int kk_kept_write(struct kk_kept *k, struct kk_saved *s, const char *name, int64_t tokens, int take,
                  struct kk_snapshot **out, struct kk_err *err)
{
    char own[KK_SPOOL_NAME + 1];
    int rc = write_blocks(k, s, 0, err);
    if (!rc) rc = write_blocks(k, s, 1, err);
    struct kept_file **file = kk_array((size_t)s->n_blocks + 1, sizeof *file);
    if (!rc && !file) rc = kk_fail(err, KK_ENOMEM, "out of memory to write a session");
    const int n = rc ? 0 : files_of(s, file);
    if (!rc && snprintf(own, sizeof own, "%s%s", name, n ? "s" : "") >= (int)sizeof own)
        rc = kk_fail(err, KK_EINVAL, "'%s' is too long for a snapshot's name", name);
    struct kk_snapshot *f = rc ? NULL : snapshot(own, tokens, n);
    if (!rc && !f) rc = kk_fail(err, KK_ENOMEM, "out of memory to write a session");
    if (f) {
        memcpy(f->file, file, (size_t)n * sizeof *file);
        f->n_files = n;
        rc = write_own(k, s, f, take, err);
    }
    kk_free(file);
    if (rc) {
        kk_free(f);
        kk_kept_sweep(k); /* files of blocks that were for this one */
        return rc;
    }
    for (int i = 0; i < n; i++) f->file[i]->refs++;
    if (take) kk_saved_release(k, s);
    *out = f;
    return 0;
}

/* ---- reading ------------------------------------------------------------------------------ */

static int damaged(const char *name, struct kk_err *err)
{
    return kk_fail(err, KK_EFORMAT, "'%s' does not refer to blocks as it should", name);
}

/* The end of a session's file; *at: where its numbers begin. */
static int read_tail(struct kk_spool_reader *r, const char *name, struct refs_tail *t, uint64_t *at,
                     struct kk_err *err)
{
    const uint64_t len = kk_spool_length(r);
    if (len < sizeof *t) return damaged(name, err);
    int rc = kk_spool_range(r, len - sizeof *t, t, sizeof *t, err);
    if (rc) return rc;
    const uint64_t numbers = (uint64_t)t->n_blocks + t->n_files;
    if (memcmp(t->magic, refs_magic, sizeof t->magic) || numbers > MOST_BLOCKS ||
        t->own > len - sizeof *t || len - sizeof *t - t->own != numbers * sizeof(uint64_t))
        return damaged(name, err);
    *at = t->own;
    return 0;
}

static int names_blocks(const char *name)
{
    const size_t n = strlen(name);
    return n > 0 && name[n - 1] == 's';
}

int kk_kept_read(struct kk_kept *k, const struct kk_snapshot *f, struct kk_saved *s,
                 struct kk_err *err)
{
    struct refs_tail t = {0};
    uint64_t at = 0, number;
    int rc = kk_spool_read(k->spool, f->name, &s->own, err);
    if (rc) return rc;
    s->n = kk_spool_length(s->own);
    if (s->n >= sizeof t && !read_tail(s->own, f->name, &t, &at, NULL)) {
        s->n = t.own;
        s->room = t.room;
    } else if (names_blocks(f->name)) {
        rc = damaged(f->name, err);
    }
    for (uint32_t i = 0; !rc && i < t.n_blocks; i++) {
        rc = kk_spool_range(s->own, at + i * sizeof number, &number, sizeof number, err);
        struct kept_block *b = rc ? NULL : find(k, number);
        if (!rc && !b) rc = kk_fail(err, KK_EFORMAT, "shared block %" PRIu64 " is gone", number);
        if (!rc) rc = refer(s, b, err);
    }
    if (rc) kk_saved_release(k, s);
    return rc;
}

/* ---- start -------------------------------------------------------------------------------- */

int kk_kept_found(struct kk_kept *k, const char *name)
{
    char again[KK_SPOOL_NAME + 1];
    if (strncmp(name, prefix, sizeof prefix - 1)) return 0;
    struct kept_file f = {.number = strtoull(name + sizeof prefix - 1, NULL, 10)};
    name_of(&f, again);
    return !strcmp(again, name) && new_file(k, f.number);
}

/* Entry by entry; the blocks of one that is damaged are taken back by the caller. */
static int read_directory(struct kk_kept *k, struct kept_file *f, struct kk_spool_reader *r,
                          struct kk_err *err)
{
    const uint64_t len = kk_spool_length(r);
    struct blocks_head h;
    struct blocks_entry e;
    char name[KK_SPOOL_NAME + 1];
    name_of(f, name);
    int rc = len < sizeof h ? damaged(name, err) : kk_spool_range(r, 0, &h, sizeof h, err);
    if (rc) return rc;
    uint64_t at = sizeof h + (uint64_t)h.n * sizeof e;
    if (memcmp(h.magic, blocks_magic, sizeof h.magic) || h.version != VERSION || at > len)
        return damaged(name, err);
    for (uint32_t i = 0; i < h.n; i++) {
        rc = kk_spool_range(r, sizeof h + (uint64_t)i * sizeof e, &e, sizeof e, err);
        if (rc) return rc;
        if (!e.number || find(k, e.number) || e.bytes > len - at) return damaged(name, err);
        struct kept_block *b = add(k, e.number);
        if (!b) return kk_fail(err, KK_ENOMEM, "out of memory for shared blocks");
        b->bytes = e.bytes;
        b->room = e.room;
        b->lasting = e.lasting != 0;
        b->file = f;
        b->at = at;
        b->in_file = f->first;
        f->first = b;
        at += e.bytes;
        if (e.number > *k->number) *k->number = e.number;
    }
    return at == len ? 0 : damaged(name, err);
}

int kk_kept_load(struct kk_kept *k, struct kk_err *err)
{
    char name[KK_SPOOL_NAME + 1];
    for (struct kept_file *f = k->files, *after; f; f = after) {
        struct kk_spool_reader *r = NULL;
        after = f->next;
        name_of(f, name);
        if (f->number > *k->number) *k->number = f->number;
        int rc = kk_spool_read(k->spool, name, &r, err);
        if (!rc) rc = read_directory(k, f, r, err);
        kk_spool_end(r);
        if (rc == KK_ENOMEM) return rc;
        if (rc) remove_file(k, f);
    }
    return 0;
}

static struct kept_file *file_of(const struct kk_kept *k, uint64_t number)
{
    struct kept_file *f = k->files;
    while (f && f->number != number) f = f->next;
    return f;
}

int kk_kept_adopt(struct kk_kept *k, struct kk_snapshot **f, struct kk_err *err)
{
    const struct kk_snapshot *old = *f;
    struct kk_spool_reader *r = NULL;
    struct refs_tail t;
    uint64_t at = 0, number;
    if (!names_blocks(old->name)) return 0;
    int rc = kk_spool_read(k->spool, old->name, &r, err);
    if (!rc) rc = read_tail(r, old->name, &t, &at, err);
    struct kk_snapshot *new = rc ? NULL : snapshot(old->name, old->tokens, (int)t.n_files);
    if (!rc && !new) rc = kk_fail(err, KK_ENOMEM, "out of memory for snapshots");
    at += rc ? 0 : t.n_blocks * sizeof number;
    for (uint32_t i = 0; !rc && i < t.n_files; i++) {
        rc = kk_spool_range(r, at + i * sizeof number, &number, sizeof number, err);
        struct kept_file *file = rc ? NULL : file_of(k, number);
        if (!rc && !file)
            rc = kk_fail(err, KK_EFORMAT, "'%s' needs '%s%" PRIu64 "', which is not there",
                         old->name, prefix, number);
        if (!rc) new->file[new->n_files++] = file;
    }
    kk_spool_end(r);
    if (rc) {
        kk_free(new);
        return rc;
    }
    for (int i = 0; i < new->n_files; i++) new->file[i]->refs++;
    kk_free(*f);
    *f = new;
    return 0;
}

void kk_kept_sweep(struct kk_kept *k)
{
    for (struct kept_file *f = k->files, *after; f; f = after) {
        after = f->next;
        if (!f->refs) remove_file(k, f);
    }
}

/* ---- open and close ----------------------------------------------------------------------- */

int kk_kept_open(uint64_t *number, struct kk_kept **out, struct kk_err *err)
{
    struct kk_kept *k = kk_calloc(1, sizeof *k);
    if (!k) return kk_fail(err, KK_ENOMEM, "out of memory for the runtime");
    k->number = number;
    *out = k;
    return 0;
}

void kk_kept_spool(struct kk_kept *k, struct kk_spool *sp)
{
    k->spool = sp;
}

void kk_kept_close(struct kk_kept *k)
{
    if (!k) return;
    for (struct kept_file *f = k->files, *after; f; f = after) {
        after = f->next;
        detach(k, f);
        kk_free(f);
    }
    kk_free(k);
}

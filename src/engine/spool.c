/* Every write and removal is a job; jobs are done one after the other, in the order they were asked
 * for. A job stays in the queue while it runs, so that whoever looks for its name finds it there or
 * on disk. `promised_bytes` counts a job from the moment it is asked for: what it says is what the
 * disk will hold when the queue is empty, and it never passes the bound. */
#include "engine/spool.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/hash.h"
#include "base/mem.h"

enum { VERSION = 1, CHUNK = 256 << 10, SEED = 1, PATH = 4096 };

static const char magic[8] = "KKSPOOL\n";

struct head {
    char magic[8];
    uint32_t version, chunk;
    uint64_t len;
    uint64_t check; /* of all before it and of the table */
};

/* A write, or a removal (data NULL). */
struct job {
    struct job *next;
    int64_t ticket, bytes; /* of the file */
    void *data;
    size_t len;
    char *needs; /* names, as kk_spool_write_after has them; NULL: none */
    int removal, cancelled;
    char name[KK_SPOOL_NAME + 1];
};

struct kk_spool {
    struct kk_spool_options o;
    char dir[PATH];
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake, idle;
    struct job *first, **last; /* in turn; `running`, if any, is the first */
    struct job *running;
    int busy, stop; /* busy: a job runs, or its on_done */
    int64_t ticket;
    struct kk_spool_stats stats;
    _Atomic int64_t disk_bytes; /* of stats, for those without the lock */
};

static uint64_t chunks_of(uint64_t len)
{
    return len / CHUNK + (len % CHUNK != 0);
}

static uint64_t head_check(const struct head *h, const uint64_t *table)
{
    struct kk_hash sum;
    kk_hash_init(&sum, SEED);
    kk_hash_add(&sum, h, offsetof(struct head, check));
    kk_hash_add(&sum, table, chunks_of(h->len) * sizeof *table);
    return kk_hash_value(&sum);
}

static int64_t file_bytes(uint64_t len)
{
    return (int64_t)(sizeof(struct head) + chunks_of(len) * sizeof(uint64_t) + len);
}

static int ends_in_tmp(const char *name)
{
    size_t n = strlen(name);
    return n >= 4 && !strcmp(name + n - 4, ".tmp");
}

static int check_name(const char *name, struct kk_err *err)
{
    size_t n = strlen(name);
    size_t good = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.");
    if (n && n <= KK_SPOOL_NAME && good == n && name[0] != '.' && !ends_in_tmp(name)) return 0;
    return kk_fail(err, KK_EINVAL, "'%.*s' is no name for a snapshot", KK_SPOOL_NAME + 1, name);
}

/* Bytes of a file on disk; -1: there is none. */
static int64_t size_on_disk(const struct kk_spool *sp, const char *name)
{
    char path[PATH];
    struct stat st;
    if (kk_fs_join(path, sizeof path, sp->dir, name, NULL) || lstat(path, &st)) return -1;
    return (int64_t)st.st_size;
}

/* ---- the queue ---- */

static void push(struct kk_spool *sp, struct job *job)
{
    *sp->last = job;
    sp->last = &job->next;
    pthread_cond_signal(&sp->wake);
}

/* A job of this name and kind that still counts; caller holds the lock. */
static struct job *find(const struct kk_spool *sp, const char *name, int removal)
{
    for (struct job *job = sp->first; job; job = job->next)
        if (job->removal == removal && !job->cancelled && !strcmp(job->name, name)) return job;
    return NULL;
}

/* Bytes that the disk has left beside the spare ones; below 0: it has less than those. */
static int64_t room_on_disk(const struct kk_spool *sp)
{
    struct statvfs v;
    if (sp->o.spare_bytes < 0 || statvfs(sp->dir, &v)) return INT64_MAX;
    return (int64_t)(v.f_bavail * v.f_frsize) - sp->o.spare_bytes;
}

int kk_spool_is_short(const struct kk_spool *sp)
{
    return room_on_disk(sp) < 0;
}

/* Is there room for this write? Caller holds the lock. */
static int admit(struct kk_spool *sp, const struct job *job, struct kk_err *err)
{
    const struct kk_spool_stats *s = &sp->stats;
    if (find(sp, job->name, 0) || size_on_disk(sp, job->name) >= 0)
        return kk_fail(err, KK_EBUSY, "there is a snapshot '%s' already", job->name);
    if (sp->o.disk_bytes && s->promised_bytes + job->bytes > sp->o.disk_bytes)
        return kk_fail(err, KK_EEXHAUSTED,
                       "snapshots take %" PRId64 " of %" PRId64 " bytes: %" PRId64
                       " more do not fit",
                       s->promised_bytes, sp->o.disk_bytes, job->bytes);
    int64_t waiting = s->promised_bytes - s->disk_bytes, room = room_on_disk(sp);
    if (room < (waiting > 0 ? waiting : 0) + job->bytes)
        return kk_fail(err, KK_EIO,
                       "the disk has room for %" PRId64 " bytes of snapshots: %" PRId64
                       " wait, %" PRId64 " more do not fit",
                       room < 0 ? 0 : room, waiting, job->bytes);
    if (job->len > sp->o.queue_bytes || s->queue_bytes > sp->o.queue_bytes - job->len)
        return kk_fail(err, KK_EEXHAUSTED,
                       "snapshots of %zu of %zu bytes wait to be written: %zu more do not fit",
                       s->queue_bytes, sp->o.queue_bytes, job->len);
    return 0;
}

static void free_job(struct job *job)
{
    kk_free(job->needs);
    kk_free(job);
}

static struct job *make_job(const char *name, const char *needs, struct kk_err *err)
{
    struct job *job = kk_calloc(1, sizeof *job);
    size_t n = 0;
    while (needs && needs[n]) n += strlen(needs + n) + 1;
    if (job && n) job->needs = kk_malloc(n + 1);
    if (!job || (n && !job->needs)) {
        kk_free(job);
        kk_fail(err, KK_ENOMEM, "spool: no memory for a job");
        return NULL;
    }
    if (n) memcpy(job->needs, needs, n + 1);
    memcpy(job->name, name, strlen(name));
    return job;
}

int kk_spool_has(const struct kk_spool *sp, const char *name)
{
    return size_on_disk(sp, name) >= 0;
}

int64_t kk_spool_write(struct kk_spool *sp, const char *name, void *data, size_t len,
                       struct kk_err *err)
{
    return kk_spool_write_after(sp, name, data, len, NULL, err);
}

int64_t kk_spool_write_after(struct kk_spool *sp, const char *name, void *data, size_t len,
                             const char *needs, struct kk_err *err)
{
    int64_t rc = check_name(name, err);
    if (rc) return rc;
    struct job *job = make_job(name, needs, err);
    if (!job) return KK_ENOMEM;
    job->data = data;
    job->len = len;
    job->bytes = file_bytes(len);
    pthread_mutex_lock(&sp->lock);
    rc = admit(sp, job, err);
    if (!rc) {
        rc = job->ticket = ++sp->ticket;
        sp->stats.queue_bytes += len;
        sp->stats.promised_bytes += job->bytes;
        push(sp, job);
    }
    pthread_mutex_unlock(&sp->lock);
    if (rc < 0) free_job(job);
    return rc;
}

/* Caller holds the lock. 1: `job` is in the queue. */
static int remove_locked(struct kk_spool *sp, struct job *job)
{
    struct job *write = find(sp, job->name, 0);
    int running = write && write == sp->running;
    if (find(sp, job->name, 1)) return 0;
    if (write && !running) {
        write->cancelled = 1;
        sp->stats.promised_bytes -= write->bytes;
        sp->stats.queue_bytes -= write->len;
        kk_free(write->data);
        write->data = NULL;
        return 0;
    }
    job->bytes = running ? write->bytes : size_on_disk(sp, job->name);
    if (job->bytes < 0) return 0;
    sp->stats.promised_bytes -= job->bytes;
    push(sp, job);
    return 1;
}

int kk_spool_remove(struct kk_spool *sp, const char *name, struct kk_err *err)
{
    int rc = check_name(name, err);
    if (rc) return rc;
    struct job *job = make_job(name, NULL, err);
    if (!job) return KK_ENOMEM;
    job->removal = 1;
    pthread_mutex_lock(&sp->lock);
    int queued = remove_locked(sp, job);
    pthread_mutex_unlock(&sp->lock);
    if (!queued) free_job(job);
    return 0;
}

/* ---- the thread ---- */

static int sync_directory(const char *dir, struct kk_err *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
    if (fd < 0 || fsync(fd))
        rc = kk_fail(err, KK_EIO, "cannot sync '%s': %s", dir, strerror(errno));
    if (fd >= 0) close(fd);
    return rc;
}

static int put_file(const char *path, const struct job *job, struct kk_err *err)
{
    struct head h = {.version = VERSION, .chunk = CHUNK, .len = job->len};
    uint64_t n = chunks_of(job->len), *table = kk_array(n, sizeof *table);
    struct kk_fs_out out;
    if (!table) return kk_fail(err, KK_ENOMEM, "spool: no memory for checksums");
    memcpy(h.magic, magic, sizeof magic);
    for (uint64_t i = 0; i < n; i++) {
        size_t left = job->len - i * CHUNK;
        table[i] = kk_hash64((const char *)job->data + i * CHUNK, left < CHUNK ? left : CHUNK, i);
    }
    h.check = head_check(&h, table);
    int rc = kk_fs_out_open(path, &out, err);
    if (!rc) {
        rc = kk_fs_out_write(&out, &h, sizeof h, err);
        if (!rc) rc = kk_fs_out_write(&out, table, n * sizeof *table, err);
        if (!rc) rc = kk_fs_out_write(&out, job->data, job->len, err);
        rc = kk_fs_out_close(&out, rc, err);
    }
    kk_free(table);
    return rc;
}

static int write_job(struct kk_spool *sp, const struct job *job, struct kk_err *err)
{
    char path[PATH];
    int rc = kk_fs_join(path, sizeof path, sp->dir, job->name, err);
    for (const char *need = job->needs; !rc && need && *need; need += strlen(need) + 1)
        if (!kk_spool_has(sp, need))
            rc = kk_fail(err, KK_ENOENT, "'%s' needs '%s', which was not written", job->name, need);
    if (!rc) rc = put_file(path, job, err);
    if (rc) return rc;
    rc = sync_directory(sp->dir, err);
    if (rc) unlink(path);
    return rc;
}

static int remove_job(struct kk_spool *sp, const struct job *job)
{
    char path[PATH];
    if (kk_fs_join(path, sizeof path, sp->dir, job->name, NULL)) return KK_ERANGE;
    return unlink(path) ? KK_EIO : 0;
}

/* Caller holds the lock. A removal that finds no file was one of a write that had failed. */
static void account(struct kk_spool *sp, const struct job *job, int rc)
{
    struct kk_spool_stats *s = &sp->stats;
    if (job->cancelled) return;
    if (!job->removal) s->queue_bytes -= job->len;
    if (rc) {
        s->failed += !job->removal;
        s->promised_bytes += job->removal ? job->bytes : -job->bytes;
        return;
    }
    s->disk_bytes += job->removal ? -job->bytes : job->bytes;
    atomic_store(&sp->disk_bytes, s->disk_bytes);
    s->disk_files += job->removal ? -1 : 1;
    s->removed += job->removal;
    s->written += !job->removal;
}

static void do_job(struct kk_spool *sp, struct job *job)
{
    struct kk_err err = {0};
    int rc = 0;
    if (job->cancelled)
        rc = kk_fail(&err, KK_ECANCELLED, "'%s' was removed before it was written", job->name);
    else
        rc = job->removal ? remove_job(sp, job) : write_job(sp, job, &err);
    kk_free(job->data);
    pthread_mutex_lock(&sp->lock);
    account(sp, job, rc);
    sp->running = NULL;
    sp->first = job->next;
    if (!sp->first) sp->last = &sp->first;
    pthread_mutex_unlock(&sp->lock);
    if (!job->removal && sp->o.on_done)
        sp->o.on_done(sp->o.arg, &(struct kk_spool_done){job->ticket, job->name, job->bytes, rc,
                                                         rc ? err.msg : ""});
    free_job(job);
}

static void *work(void *arg)
{
    struct kk_spool *sp = arg;
    for (;;) {
        pthread_mutex_lock(&sp->lock);
        sp->busy = 0;
        if (!sp->first) pthread_cond_broadcast(&sp->idle);
        while (!sp->first && !sp->stop) pthread_cond_wait(&sp->wake, &sp->lock);
        struct job *job = sp->first;
        sp->running = job;
        sp->busy = job != NULL;
        pthread_mutex_unlock(&sp->lock);
        if (!job) return NULL;
        do_job(sp, job);
    }
}

void kk_spool_drain(struct kk_spool *sp)
{
    pthread_mutex_lock(&sp->lock);
    while (sp->first || sp->busy) pthread_cond_wait(&sp->idle, &sp->lock);
    pthread_mutex_unlock(&sp->lock);
}

void kk_spool_stats(struct kk_spool *sp, struct kk_spool_stats *out)
{
    pthread_mutex_lock(&sp->lock);
    *out = sp->stats;
    pthread_mutex_unlock(&sp->lock);
}

int64_t kk_spool_disk_bytes(const struct kk_spool *sp)
{
    return atomic_load(&sp->disk_bytes);
}

/* ---- open and close ---- */

/* Keep, count or remove one file found at open. */
static int sweep_one(struct kk_spool *sp, const char *name, struct kk_err *err)
{
    char path[PATH];
    struct stat st;
    int rc = kk_fs_join(path, sizeof path, sp->dir, name, err);
    if (rc) return rc;
    if (lstat(path, &st) || !S_ISREG(st.st_mode)) return 0;
    if (!check_name(name, NULL) && (!sp->o.keep || sp->o.keep(sp->o.arg, name))) {
        sp->stats.disk_bytes += (int64_t)st.st_size;
        sp->stats.disk_files++;
        return 0;
    }
    if (unlink(path)) return kk_fail(err, KK_EIO, "cannot remove '%s': %s", path, strerror(errno));
    sp->stats.swept++;
    return 0;
}

static int sweep(struct kk_spool *sp, struct kk_err *err)
{
    int rc = 0;
    if (mkdir(sp->dir, 0700) && errno != EEXIST)
        return kk_fail(err, KK_EIO, "cannot make directory '%s': %s", sp->dir, strerror(errno));
    rc = sync_directory(sp->o.dir, err);
    DIR *d = rc ? NULL : opendir(sp->dir);
    if (!rc && !d) rc = kk_fail(err, KK_EIO, "cannot list '%s': %s", sp->dir, strerror(errno));
    for (struct dirent *e; !rc && (e = readdir(d));) rc = sweep_one(sp, e->d_name, err);
    if (d) closedir(d);
    sp->stats.promised_bytes = sp->stats.disk_bytes;
    atomic_store(&sp->disk_bytes, sp->stats.disk_bytes);
    return rc;
}

static void discard(struct kk_spool *sp)
{
    pthread_cond_destroy(&sp->idle);
    pthread_cond_destroy(&sp->wake);
    pthread_mutex_destroy(&sp->lock);
    kk_free(sp);
}

int kk_spool_open(const struct kk_spool_options *o, struct kk_spool **out, struct kk_err *err)
{
    if (!o->dir || !o->dir[0]) return kk_fail(err, KK_EINVAL, "spool: no directory is named");
    struct kk_spool *sp = kk_calloc(1, sizeof *sp);
    if (!sp) return kk_fail(err, KK_ENOMEM, "spool: no memory");
    sp->o = *o;
    if (!sp->o.queue_bytes) sp->o.queue_bytes = KK_SPOOL_QUEUE;
    if (!sp->o.spare_bytes) sp->o.spare_bytes = KK_SPOOL_SPARE;
    sp->last = &sp->first;
    pthread_mutex_init(&sp->lock, NULL);
    pthread_cond_init(&sp->wake, NULL);
    pthread_cond_init(&sp->idle, NULL);
    int rc = kk_fs_join(sp->dir, sizeof sp->dir, o->dir, "snapshots", err);
    if (!rc) rc = sweep(sp, err);
    sp->o.dir = sp->dir; /* the caller's is not ours to keep */
    if (!rc && pthread_create(&sp->thread, NULL, work, sp))
        rc = kk_fail(err, KK_EEXHAUSTED, "spool: cannot make a thread");
    if (rc)
        discard(sp);
    else
        *out = sp;
    return rc;
}

void kk_spool_close(struct kk_spool *sp)
{
    if (!sp) return;
    pthread_mutex_lock(&sp->lock);
    sp->stop = 1;
    pthread_mutex_unlock(&sp->lock);
    pthread_cond_signal(&sp->wake);
    pthread_join(sp->thread, NULL);
    discard(sp);
}

/* ---- reading ---- */

struct kk_spool_reader {
    int fd;
    struct head h;
    uint64_t *table;
    uint64_t start, at;   /* of the contents in the file; of the stream */
    unsigned char *chunk; /* the one read last, for ranges that do not cover it */
    uint64_t held;        /* which */
    char name[KK_SPOOL_NAME + 1];
};

/* Exactly n bytes at a place of the file. */
static int read_exactly(struct kk_spool_reader *r, void *p, size_t n, uint64_t at,
                        struct kk_err *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t k = pread(r->fd, (char *)p + done, n - done, (off_t)(at + done));
        if (k < 0 && errno == EINTR) continue;
        if (k < 0)
            return kk_fail(err, KK_EIO, "cannot read snapshot '%s': %s", r->name, strerror(errno));
        if (k == 0) return kk_fail(err, KK_EFORMAT, "snapshot '%s' is truncated", r->name);
        done += (size_t)k;
    }
    return 0;
}

static int read_head(struct kk_spool_reader *r, struct kk_err *err)
{
    struct head *h = &r->h;
    struct stat st;
    int rc = read_exactly(r, h, sizeof *h, 0, err);
    if (rc) return rc;
    if (memcmp(h->magic, magic, sizeof magic) || h->version != VERSION || h->chunk != CHUNK)
        return kk_fail(err, KK_EFORMAT, "'%s' is no snapshot that this program reads", r->name);
    if (fstat(r->fd, &st) || h->len > (uint64_t)st.st_size || file_bytes(h->len) != st.st_size)
        return kk_fail(err, KK_EFORMAT, "snapshot '%s' is truncated or damaged", r->name);
    size_t bytes = chunks_of(h->len) * sizeof *r->table;
    r->start = sizeof *h + bytes;
    r->held = UINT64_MAX;
    r->table = kk_malloc(bytes);
    r->chunk = kk_malloc(h->len < CHUNK ? h->len : CHUNK);
    if (!r->table || !r->chunk)
        return kk_fail(err, KK_ENOMEM, "no memory to read snapshot '%s'", r->name);
    rc = read_exactly(r, r->table, bytes, sizeof *h, err);
    if (rc || head_check(h, r->table) == h->check) return rc;
    return kk_fail(err, KK_EFORMAT, "snapshot '%s' is damaged: its head does not check", r->name);
}

int kk_spool_read(struct kk_spool *sp, const char *name, struct kk_spool_reader **out,
                  struct kk_err *err)
{
    char path[PATH];
    int rc = check_name(name, err);
    if (!rc) rc = kk_fs_join(path, sizeof path, sp->dir, name, err);
    if (rc) return rc;
    struct kk_spool_reader *r = kk_calloc(1, sizeof *r);
    if (!r) return kk_fail(err, KK_ENOMEM, "no memory to read snapshot '%s'", name);
    memcpy(r->name, name, strlen(name));
    r->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (r->fd < 0)
        rc = kk_fail(err, errno == ENOENT ? KK_ENOENT : KK_EIO, "cannot open snapshot '%s': %s",
                     name, strerror(errno));
    if (!rc) rc = read_head(r, err);
    if (rc)
        kk_spool_end(r);
    else
        *out = r;
    return rc;
}

void kk_spool_end(struct kk_spool_reader *r)
{
    if (!r) return;
    if (r->fd >= 0) close(r->fd);
    kk_free(r->table);
    kk_free(r->chunk);
    kk_free(r);
}

uint64_t kk_spool_length(const struct kk_spool_reader *r)
{
    return r->h.len;
}

/* A whole chunk into p, checked. */
static int read_chunk(struct kk_spool_reader *r, uint64_t i, void *p, struct kk_err *err)
{
    uint64_t left = r->h.len - i * CHUNK;
    size_t n = left < CHUNK ? (size_t)left : CHUNK;
    int rc = read_exactly(r, p, n, r->start + i * CHUNK, err);
    if (rc || kk_hash64(p, n, i) == r->table[i]) return rc;
    return kk_fail(err, KK_EFORMAT,
                   "snapshot '%s' is damaged: bytes %" PRIu64 " to %" PRIu64 " do not check",
                   r->name, i * CHUNK, i * CHUNK + n - 1);
}

/* The chunk into the reader's own buffer. */
static int hold_chunk(struct kk_spool_reader *r, uint64_t i, struct kk_err *err)
{
    if (r->held == i) return 0;
    r->held = UINT64_MAX;
    int rc = read_chunk(r, i, r->chunk, err);
    if (!rc) r->held = i;
    return rc;
}

int kk_spool_range(struct kk_spool_reader *r, uint64_t at, void *p, size_t n, struct kk_err *err)
{
    if (at > r->h.len || n > r->h.len - at)
        return kk_fail(err, KK_EFORMAT,
                       "snapshot '%s' has %" PRIu64 " bytes: there are no %zu at %" PRIu64, r->name,
                       r->h.len, n, at);
    for (size_t done = 0, take; done < n; done += take) {
        uint64_t i = (at + done) / CHUNK;
        size_t off = (size_t)((at + done) % CHUNK);
        take = CHUNK - off < n - done ? CHUNK - off : n - done;
        int whole = take == CHUNK;
        int rc = whole ? read_chunk(r, i, (char *)p + done, err) : hold_chunk(r, i, err);
        if (rc) return rc;
        if (!whole) memcpy((char *)p + done, r->chunk + off, take);
    }
    return 0;
}

static int next_bytes(void *arg, void *p, size_t n, struct kk_err *err)
{
    struct kk_spool_reader *r = arg;
    int rc = kk_spool_range(r, r->at, p, n, err);
    if (!rc) r->at += n;
    return rc;
}

struct kk_io kk_spool_source(struct kk_spool_reader *r)
{
    r->at = 0;
    return (struct kk_io){next_bytes, r};
}

/* The journal's database.
 *
 *     session  one row each: id, label, eos ids, snapshot, and `tokens` of its history in pieces
 *     piece    histories: PIECE ids a row, a page's worth; key = session << 32 | first position
 *     shared   full pieces that forks have in common, by the key that the first of them had; the
 *              pieces of each of them hold that key in place of ids, and `refs` counts them
 *     run      the log: what was appended and is not in a piece yet, in the order it came
 *
 * Why a log: a step of a thousand sessions appends one token to each. Into their pieces that is a
 * thousand pages of 4 KiB; into the log it is six. A fold moves the log into the pieces in one
 * transaction, a page for each session however many tokens the log has for it.
 *
 * A fork shares the full pieces of its parent, whose part of the log is folded before, and copies
 * the rest: less than a piece. No reader follows a chain, a closed parent leaves nothing behind.
 *
 * Numbers of sessions are not given twice while the log may still hold rows of a removed one, or a
 * shared piece has its key: the log is empty when the next number is derived. */
#include "engine/journal_int.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/mem.h"

enum {
    VERSION = 2,
    OLDER = 1, /* had no shared pieces */
    APPLICATION = 0x6b6b6a6c,
    PIECE = 1000,      /* ids of a piece: 4000 bytes and a row header fill a page */
    FOLD_ROWS = 16384, /* of the log */
    FOLD_BYTES = 8 << 20,
    GATHER_BYTES = 1 << 20 /* of one session, in a fold */
};

#define SHARED_TABLE                                                                               \
    "CREATE TABLE shared(at INTEGER PRIMARY KEY, refs INTEGER NOT NULL, ids BLOB NOT NULL);"

static const char schema[] =
    "CREATE TABLE model(fingerprint INTEGER NOT NULL, name TEXT NOT NULL);"
    "CREATE TABLE session(n INTEGER PRIMARY KEY, id TEXT NOT NULL, label TEXT NOT NULL,"
    " eos BLOB NOT NULL, created INTEGER NOT NULL, active INTEGER NOT NULL,"
    " tokens INTEGER NOT NULL, snapshot TEXT, snapshot_rows INTEGER, snapshot_bytes INTEGER);"
    "CREATE TABLE piece(at INTEGER PRIMARY KEY, ids BLOB NOT NULL);" SHARED_TABLE
    "CREATE TABLE run(n INTEGER PRIMARY KEY, session INTEGER NOT NULL, pos INTEGER NOT NULL,"
    " time INTEGER NOT NULL, ids BLOB NOT NULL);";

#define LOW "4294967295" /* the position in a piece's key */
#define ALL "at BETWEEN ?1 << 32 AND ?1 << 32 | " LOW
/* Pieces of session ?2 that lie full before position ?3; PIECE is 1000. */
#define FULL "at BETWEEN ?2 << 32 AND (?2 << 32) + ?3 - 1000"
#define IDS                                                                                        \
    "CASE typeof(ids) WHEN 'integer' THEN (SELECT s.ids FROM shared AS s WHERE s.at = piece.ids)"  \
    " ELSE ids END"
enum {
    BEGIN,
    COMMIT,
    CREATE,
    FORK,
    FORK_SHARE,
    FORK_SHARED,
    FORK_COUNT,
    FORK_PIECES,
    APPEND,
    SNAPSHOT,
    REMOVE,
    REMOVE_LAST,
    REMOVE_COUNT,
    REMOVE_PIECES,
    FOLD_READ,
    FOLD_PIECE,
    FOLD_SESSION,
    FOLD_CLEAR,
    EACH_SESSION,
    EACH_PIECE,
    N_STATEMENTS
};
static const char *const sql[N_STATEMENTS] = {
    [BEGIN] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [CREATE] = "INSERT INTO session(n, id, label, eos, created, active, tokens)"
               " VALUES(?1, ?2, ?3, ?4, ?5, ?5, 0)",
    [FORK] = "INSERT INTO session(n, id, label, eos, created, active, tokens)"
             " SELECT ?1, ?2, ?3, eos, ?4, ?4, min(tokens, ?6) FROM session WHERE n = ?5",
    [FORK_SHARE] = "INSERT INTO shared(at, refs, ids) SELECT at, 1, ids FROM piece WHERE " FULL
                   " AND typeof(ids) = 'blob'",
    [FORK_SHARED] = "UPDATE piece SET ids = at WHERE " FULL " AND typeof(ids) = 'blob'",
    [FORK_COUNT] = "UPDATE shared SET refs = refs + 1 WHERE at IN"
                   " (SELECT ids FROM piece WHERE " FULL ")",
    [FORK_PIECES] = "INSERT INTO piece(at, ids) SELECT (?1 << 32) | (at & " LOW "),"
                    " CASE WHEN " FULL " THEN ids"
                    " ELSE substr(" IDS ", 1, 4 * (?3 - (at & " LOW "))) END FROM piece"
                    " WHERE at BETWEEN ?2 << 32 AND (?2 << 32) + ?3 - 1",
    [APPEND] = "INSERT INTO run(session, pos, time, ids) VALUES(?1, ?2, ?3, ?4)",
    [SNAPSHOT] = "UPDATE session SET snapshot = ?2, snapshot_rows = ?3, snapshot_bytes = ?4"
                 " WHERE n = ?1",
    [REMOVE] = "DELETE FROM session WHERE n = ?1",
    [REMOVE_LAST] = "DELETE FROM shared WHERE refs = 1 AND at IN (SELECT ids FROM piece"
                    " WHERE " ALL " AND typeof(ids) = 'integer')",
    [REMOVE_COUNT] = "UPDATE shared SET refs = refs - 1 WHERE at IN (SELECT ids FROM piece"
                     " WHERE " ALL " AND typeof(ids) = 'integer')",
    [REMOVE_PIECES] = "DELETE FROM piece WHERE " ALL,
    [FOLD_READ] = "SELECT run.session, run.pos, run.time, run.ids, session.tokens"
                  " FROM run JOIN session ON session.n = run.session"
                  " WHERE ?1 < 0 OR run.session = ?1 ORDER BY run.session, run.n",
    [FOLD_PIECE] = "INSERT INTO piece(at, ids) VALUES(?1, ?2)"
                   " ON CONFLICT(at) DO UPDATE SET ids = CAST(ids || excluded.ids AS BLOB)",
    [FOLD_SESSION] = "UPDATE session SET tokens = ?2, active = max(active, ?3) WHERE n = ?1",
    [FOLD_CLEAR] = "DELETE FROM run WHERE ?1 < 0 OR session = ?1",
    [EACH_SESSION] = "SELECT n, id, label, eos, created, active, tokens, snapshot, snapshot_rows,"
                     " snapshot_bytes FROM session ORDER BY n",
    [EACH_PIECE] = "SELECT at & " LOW ", " IDS " FROM piece WHERE " ALL " ORDER BY at",
};

struct kk_jdb {
    sqlite3 *sq;
    sqlite3_stmt *st[N_STATEMENTS];
    int lock; /* DIR/lock */
    char path[4096], wal[4096 + 4];
    struct stat path_stat, wal_stat;
    int64_t log_rows, log_bytes; /* of `run` */
    int64_t fold_rows, fold_bytes;
    int64_t next_session;
};

/* ---- statements ---- */

/* What SQLite says, with the system's own reason where there is one. */
static int db_fail(struct kk_jdb *db, struct kk_err *err)
{
    int rc = sqlite3_errcode(db->sq), os = rc == SQLITE_IOERR ? sqlite3_system_errno(db->sq) : 0;
    const char *why = sqlite3_errmsg(db->sq);
    if (rc == SQLITE_CORRUPT || rc == SQLITE_NOTADB)
        return kk_fail(err, KK_EFORMAT,
                       "'%s' is damaged (%s): move its directory away to start afresh", db->path,
                       why);
    if (rc == SQLITE_BUSY || rc == SQLITE_LOCKED)
        return kk_fail(err, KK_EEXHAUSTED, "'%s' is in use by another program", db->path);
    return kk_fail(err, KK_EIO, "'%s': %s%s%s", db->path, why, os ? ": " : "",
                   os ? strerror(os) : "");
}

/* Bind: i int64_t; t text, b blob: const void *, size_t (a NULL text is NULL). */
static sqlite3_stmt *bind(struct kk_jdb *db, int which, const char *types, va_list ap)
{
    sqlite3_stmt *st = db->st[which];
    for (int i = 1; types[i - 1]; i++) {
        if (types[i - 1] == 'i') {
            sqlite3_bind_int64(st, i, va_arg(ap, int64_t));
            continue;
        }
        const void *p = va_arg(ap, const void *);
        size_t n = va_arg(ap, size_t);
        if (types[i - 1] == 't')
            sqlite3_bind_text64(st, i, p, n, SQLITE_STATIC, SQLITE_UTF8);
        else if (n)
            sqlite3_bind_blob64(st, i, p, n, SQLITE_STATIC);
        else
            sqlite3_bind_zeroblob(st, i, 0);
    }
    return st;
}

/* Run a statement that gives no rows. */
static int run(struct kk_jdb *db, struct kk_err *err, int which, const char *types, ...)
{
    va_list ap;
    va_start(ap, types);
    sqlite3_stmt *st = bind(db, which, types, ap);
    va_end(ap);
    int rc = sqlite3_step(st) == SQLITE_DONE ? 0 : db_fail(db, err);
    sqlite3_reset(st);
    return rc;
}

/* 1: a row, 0: no more, else an error. */
static int next_row(struct kk_jdb *db, int which, struct kk_err *err)
{
    int rc = sqlite3_step(db->st[which]);
    return rc == SQLITE_ROW ? 1 : rc == SQLITE_DONE ? 0 : db_fail(db, err);
}

static int exec(struct kk_jdb *db, const char *text, struct kk_err *err)
{
    return sqlite3_exec(db->sq, text, NULL, NULL, NULL) == SQLITE_OK ? 0 : db_fail(db, err);
}

/* The first column of the first row, copied; "" if there is no row, or NULL in it. */
static int ask(struct kk_jdb *db, const char *text, char *out, size_t cap, struct kk_err *err)
{
    sqlite3_stmt *st = NULL;
    int rc = 0;
    out[0] = 0;
    if (sqlite3_prepare_v2(db->sq, text, -1, &st, NULL)) return db_fail(db, err);
    int step = sqlite3_step(st);
    const unsigned char *s = step == SQLITE_ROW ? sqlite3_column_text(st, 0) : NULL;
    if (step == SQLITE_ROW)
        snprintf(out, cap, "%s", s ? (const char *)s : "");
    else if (step != SQLITE_DONE)
        rc = db_fail(db, err);
    sqlite3_finalize(st);
    return rc;
}

static int ask_int(struct kk_jdb *db, const char *text, int64_t *out, struct kk_err *err)
{
    char s[32];
    int rc = ask(db, text, s, sizeof s, err);
    *out = 0;
    if (!rc) *out = strtoll(s, NULL, 10);
    return rc;
}

/* ---- transactions ---- */

static int same_file(const char *path, const struct stat *was)
{
    struct stat st;
    return stat(path, &st) == 0 && st.st_ino == was->st_ino && st.st_dev == was->st_dev;
}

/* A file that was removed under an open descriptor takes writes and keeps none of them. */
static int begin(struct kk_jdb *db, struct kk_err *err)
{
    if (!same_file(db->path, &db->path_stat) || !same_file(db->wal, &db->wal_stat))
        return kk_fail(err, KK_EIO, "'%s' was removed or replaced while in use", db->path);
    return run(db, err, BEGIN, "");
}

/* Commit if rc is 0, else undo; returns the error there was. */
static int end(struct kk_jdb *db, int rc, struct kk_err *err)
{
    if (!rc) rc = run(db, err, COMMIT, "");
    if (rc && !sqlite3_get_autocommit(db->sq)) sqlite3_exec(db->sq, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

/* ---- folding ---- */

/* ids, as bytes, to positions at .. of a session's pieces. */
static int add_pieces(struct kk_jdb *db, int64_t session, int64_t at, const struct kk_buf *ids,
                      struct kk_err *err)
{
    int64_t n = (int64_t)(ids->len / 4);
    int rc = 0;
    for (int64_t i = 0, take; i < n && !rc; i += take) {
        int64_t first = (at + i) / PIECE * PIECE;
        take = first + PIECE - (at + i);
        if (take > n - i) take = n - i;
        rc = run(db, err, FOLD_PIECE, "ib", session << 32 | first, ids->data + 4 * i,
                 (size_t)(4 * take));
    }
    return rc;
}

/* What a fold gathers of one session before it writes. */
struct gather {
    int64_t session, at, time; /* at: position of the first id gathered */
    struct kk_buf ids;
};

static int put_gathered(struct kk_jdb *db, struct gather *g, struct kk_err *err)
{
    int64_t tokens = g->at + (int64_t)(g->ids.len / 4);
    if (!g->ids.len) return 0;
    int rc = add_pieces(db, g->session, g->at, &g->ids, err);
    if (!rc) rc = run(db, err, FOLD_SESSION, "iii", g->session, tokens, g->time);
    g->at = tokens;
    kk_buf_reset(&g->ids);
    return rc;
}

/* The row that FOLD_READ stands on. */
static int gather_row(struct kk_jdb *db, struct gather *g, struct kk_err *err)
{
    sqlite3_stmt *st = db->st[FOLD_READ];
    int64_t session = sqlite3_column_int64(st, 0), pos = sqlite3_column_int64(st, 1);
    const void *ids = sqlite3_column_blob(st, 3);
    size_t len = (size_t)sqlite3_column_bytes(st, 3);
    int rc = 0;
    if (session != g->session || g->ids.len >= GATHER_BYTES) rc = put_gathered(db, g, err);
    if (rc) return rc;
    if (session != g->session) g->session = session, g->at = sqlite3_column_int64(st, 4);
    if (len % 4 || pos != g->at + (int64_t)(g->ids.len / 4))
        return kk_fail(err, KK_EFORMAT,
                       "'%s' is damaged (session %" PRId64 " has a hole before token %" PRId64 ")",
                       db->path, session, pos);
    g->time = sqlite3_column_int64(st, 2);
    rc = kk_buf_append(&g->ids, ids, len);
    return rc ? kk_fail(err, rc, "journal: no memory to fold the log") : 0;
}

/* What the log has of a session (-1: of all) into its pieces, within a transaction. */
static int fold(struct kk_jdb *db, int64_t session, struct kk_err *err)
{
    struct gather g = {.session = -1};
    int rc = 0, row = 0;
    kk_buf_init(&g.ids, SIZE_MAX / 2);
    sqlite3_bind_int64(db->st[FOLD_READ], 1, session);
    while (!rc && (row = next_row(db, FOLD_READ, err)) == 1) rc = gather_row(db, &g, err);
    if (!rc) rc = row;
    sqlite3_reset(db->st[FOLD_READ]);
    if (!rc) rc = put_gathered(db, &g, err);
    if (!rc) rc = run(db, err, FOLD_CLEAR, "i", session);
    kk_buf_release(&g.ids);
    return rc;
}

int kk_jdb_fold(struct kk_jdb *db, struct kk_err *err)
{
    int rc = begin(db, err);
    if (!rc) rc = end(db, fold(db, -1, err), err);
    if (!rc) db->log_rows = db->log_bytes = 0;
    db->fold_rows = db->log_rows + FOLD_ROWS; /* after a failure not at once again */
    db->fold_bytes = db->log_bytes + FOLD_BYTES;
    return rc;
}

int kk_jdb_fold_due(const struct kk_jdb *db)
{
    return db->log_rows >= db->fold_rows || db->log_bytes >= db->fold_bytes;
}

/* ---- operations ---- */

static int apply(struct kk_jdb *db, const struct kk_jop *op, const char *const part[],
                 struct kk_err *err)
{
    int64_t s = op->session;
    const char *p = part[0];
    size_t n = op->len[0];
    int rc;
    switch (op->kind) {
    case KK_JOP_CREATE:
        return run(db, err, CREATE, "ittbi", s, p, n, part[1], (size_t)op->len[1], part[2],
                   (size_t)op->len[2], op->time);
    case KK_JOP_FORK:
        rc = fold(db, op->a, err);
        if (!rc)
            rc = run(db, err, FORK, "ittiii", s, p, n, part[1], (size_t)op->len[1], op->time, op->a,
                     op->b);
        for (int i = FORK_SHARE; !rc && i <= FORK_PIECES; i++)
            rc = run(db, err, i, "iii", s, op->a, op->b);
        return rc;
    case KK_JOP_APPEND:
        return run(db, err, APPEND, "iiib", s, op->a, op->time, p, n);
    case KK_JOP_SNAPSHOT:
        return run(db, err, SNAPSHOT, "itii", s, p, n, op->a, op->b);
    case KK_JOP_NO_SNAPSHOT:
        return run(db, err, SNAPSHOT, "itii", s, NULL, (size_t)0, (int64_t)0, (int64_t)0);
    case KK_JOP_REMOVE: /* its rows in the log go with the next fold */
        rc = run(db, err, REMOVE, "i", s);
        for (int i = REMOVE_LAST; !rc && i <= REMOVE_PIECES; i++) rc = run(db, err, i, "i", s);
        return rc;
    default:
        KK_BUG_ON(1);
    }
}

int kk_jdb_write(struct kk_jdb *db, const char *ops, size_t len, struct kk_err *err)
{
    int64_t rows = 0;
    int rc = begin(db, err);
    for (size_t at = 0; at < len && !rc;) {
        struct kk_jop op;
        const char *part[KK_JOP_PARTS];
        memcpy(&op, ops + at, sizeof op);
        at += sizeof op;
        for (int i = 0; i < KK_JOP_PARTS; i++) {
            part[i] = ops + at;
            at += op.len[i];
        }
        at += (8 - at % 8) % 8;
        rc = apply(db, &op, part, err);
        rows += op.kind == KK_JOP_APPEND;
    }
    rc = end(db, rc, err);
    if (rc) return rc;
    db->log_rows += rows;
    db->log_bytes += (int64_t)len;
    return 0;
}

/* ---- reading ---- */

/* The pieces of a session into ids; they must follow each other and be `tokens` in all. */
static int read_history(struct kk_jdb *db, int64_t session, uint64_t tokens, struct kk_buf *ids,
                        struct kk_err *err)
{
    sqlite3_stmt *st = db->st[EACH_PIECE];
    int rc = 0, row = 0;
    kk_buf_reset(ids);
    sqlite3_bind_int64(st, 1, session);
    while (!rc && (row = next_row(db, EACH_PIECE, err)) == 1) {
        if ((uint64_t)sqlite3_column_int64(st, 0) != ids->len / 4) break;
        const void *blob = sqlite3_column_blob(st, 1);
        rc = kk_buf_append(ids, blob, (size_t)sqlite3_column_bytes(st, 1));
        if (rc) kk_fail(err, rc, "journal: no memory for a history of %" PRIu64 " tokens", tokens);
    }
    sqlite3_reset(st);
    if (rc || row < 0) return rc ? rc : row;
    if (ids->len == 4 * tokens) return 0;
    return kk_fail(err, KK_EFORMAT,
                   "'%s' is damaged (session %" PRId64 " has %zu of %" PRIu64
                   " tokens): move its directory away to start afresh",
                   db->path, session, ids->len / 4, tokens);
}

/* The row that EACH_SESSION stands on. */
static int visit(struct kk_jdb *db, const struct kk_jdb_visit *v, struct kk_buf *ids,
                 struct kk_err *err)
{
    sqlite3_stmt *st = db->st[EACH_SESSION];
    int64_t n = sqlite3_column_int64(st, 0);
    uint64_t tokens = (uint64_t)sqlite3_column_int64(st, 6);
    int rc = read_history(db, n, tokens, ids, err);
    if (rc) return rc;
    struct kk_journal_session s = {
        .entry = v->enter(v->journal, n, tokens),
        .id = (const char *)sqlite3_column_text(st, 1),
        .label = (const char *)sqlite3_column_text(st, 2),
        .eos = sqlite3_column_blob(st, 3),
        .n_eos = (size_t)sqlite3_column_bytes(st, 3) / 4,
        .ids = (const uint32_t *)(const void *)ids->data,
        .n = tokens,
        .created = sqlite3_column_int64(st, 4),
        .active = sqlite3_column_int64(st, 5),
        .snapshot = (const char *)sqlite3_column_text(st, 7),
        .snapshot_rows = sqlite3_column_int64(st, 8),
        .snapshot_bytes = sqlite3_column_int64(st, 9),
    };
    if (!s.entry || !s.id || !s.label) return kk_fail(err, KK_ENOMEM, "journal: no memory");
    return v->fn(v->arg, &s, err);
}

int kk_jdb_each(struct kk_jdb *db, const struct kk_jdb_visit *v, struct kk_err *err)
{
    struct kk_buf ids;
    int rc = 0, row = 0;
    kk_buf_init(&ids, SIZE_MAX / 2);
    while (!rc && (row = next_row(db, EACH_SESSION, err)) == 1) rc = visit(db, v, &ids, err);
    if (!rc) rc = row;
    sqlite3_reset(db->st[EACH_SESSION]);
    kk_buf_release(&ids);
    return rc;
}

int64_t kk_jdb_next_session(const struct kk_jdb *db)
{
    return db->next_session;
}

/* ---- opening ---- */

static int make_directory(const char *dir, struct kk_err *err)
{
    char parent[4096];
    if (mkdir(dir, 0700)) {
        if (errno != EEXIST)
            return kk_fail(err, KK_EIO, "cannot make directory '%s': %s", dir, strerror(errno));
        if (!kk_fs_is_dir(dir)) return kk_fail(err, KK_EIO, "'%s' is not a directory", dir);
        return 0;
    }
    int rc = kk_fs_join(parent, sizeof parent, dir, "..", err);
    if (rc) return rc;
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return 0; /* not ours to read: its name is as safe as it can be made */
    fsync(fd);
    close(fd);
    return 0;
}

static int take_lock(struct kk_jdb *db, const char *dir, struct kk_err *err)
{
    char path[4096], pid[32] = "";
    int rc = kk_fs_join(path, sizeof path, dir, "lock", err);
    if (rc) return rc;
    db->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (db->lock < 0) return kk_fail(err, KK_EIO, "cannot write in '%s': %s", dir, strerror(errno));
    if (flock(db->lock, LOCK_EX | LOCK_NB) == 0) {
        int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
        if (ftruncate(db->lock, 0) || pwrite(db->lock, pid, (size_t)n, 0) != n)
            return kk_fail(err, KK_EIO, "cannot write '%s': %s", path, strerror(errno));
        return 0;
    }
    if (errno != EWOULDBLOCK)
        return kk_fail(err, KK_EIO, "cannot lock '%s': %s", path, strerror(errno));
    if (pread(db->lock, pid, sizeof pid - 1, 0) < 0) pid[0] = 0;
    pid[strcspn(pid, "\n")] = 0;
    return kk_fail(err, KK_EEXHAUSTED, "'%s' is in use by process %s: give another directory", dir,
                   pid[0] ? pid : "(unknown)");
}

/* Exclusive before WAL: then the index of the WAL is in memory, and nobody else writes. */
static int configure(struct kk_jdb *db, int full, struct kk_err *err)
{
    char mode[16];
    sqlite3_busy_timeout(db->sq, 1000);
    int rc = exec(db, "PRAGMA locking_mode=EXCLUSIVE; PRAGMA temp_store=MEMORY;", err);
    if (!rc) rc = ask(db, "PRAGMA journal_mode=WAL", mode, sizeof mode, err);
    if (!rc && strcmp(mode, "wal"))
        rc = kk_fail(err, KK_EIO, "'%s' cannot be written with a WAL", db->path);
    if (!rc) rc = exec(db, full ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=NORMAL", err);
    if (!rc) rc = exec(db, "PRAGMA cache_size=-16384; PRAGMA journal_size_limit=67108864;", err);
    return rc;
}

static int check_intact(struct kk_jdb *db, struct kk_err *err)
{
    char found[200];
    int rc = ask(db, "PRAGMA quick_check(1)", found, sizeof found, err);
    if (rc || !strcmp(found, "ok")) return rc;
    found[strcspn(found, "\n")] = 0;
    return kk_fail(err, KK_EFORMAT, "'%s' is damaged (%s): move its directory away to start afresh",
                   db->path, found);
}

static int make_schema(struct kk_jdb *db, const struct kk_journal_options *o, struct kk_err *err)
{
    char *all = sqlite3_mprintf("BEGIN IMMEDIATE; %s INSERT INTO model VALUES(%lld, %Q);"
                                "PRAGMA application_id=%d; PRAGMA user_version=%d; COMMIT;",
                                schema, (long long)o->fingerprint, o->model ? o->model : "",
                                APPLICATION, VERSION);
    if (!all) return kk_fail(err, KK_ENOMEM, "journal: no memory");
    int rc = exec(db, all, err);
    sqlite3_free(all);
    return rc;
}

static int check_model(struct kk_jdb *db, const struct kk_journal_options *o, struct kk_err *err)
{
    int64_t fingerprint;
    char name[200];
    int rc = ask_int(db, "SELECT fingerprint FROM model", &fingerprint, err);
    if (!rc) rc = ask(db, "SELECT name FROM model", name, sizeof name, err);
    if (rc || (uint64_t)fingerprint == o->fingerprint) return rc;
    return kk_fail(err, KK_EINVARIANT,
                   "'%s' has sessions of model '%s' (%016" PRIx64 "), not of '%s' (%016" PRIx64
                   "): give another directory",
                   o->dir, name, (uint64_t)fingerprint, o->model ? o->model : "", o->fingerprint);
}

/* A journal of version OLDER has all but the table of shared pieces. */
static int upgrade(struct kk_jdb *db, struct kk_err *err)
{
    char text[300];
    snprintf(text, sizeof text, "BEGIN IMMEDIATE; " SHARED_TABLE "PRAGMA user_version=%d; COMMIT;",
             VERSION);
    return exec(db, text, err);
}

/* Ours, of a version we know, of this model; an empty database becomes that. */
static int check_contents(struct kk_jdb *db, const struct kk_journal_options *o, struct kk_err *err)
{
    int64_t application, version, tables;
    int rc = ask_int(db, "PRAGMA application_id", &application, err);
    if (!rc) rc = ask_int(db, "PRAGMA user_version", &version, err);
    if (!rc) rc = ask_int(db, "SELECT count(*) FROM sqlite_master", &tables, err);
    if (rc) return rc;
    if (!tables && !application) return make_schema(db, o, err);
    if (application != APPLICATION)
        return kk_fail(err, KK_EFORMAT, "'%s' is not a journal of kakeya", db->path);
    if (version != VERSION && version != OLDER)
        return kk_fail(err, KK_EUNSUPPORTED,
                       "'%s' has version %" PRId64 ", this program knows %d: it was written by a "
                       "newer one",
                       db->path, version, VERSION);
    rc = check_model(db, o, err);
    return rc || version == VERSION ? rc : upgrade(db, err);
}

static int prepare(struct kk_jdb *db, struct kk_err *err)
{
    for (int i = 0; i < N_STATEMENTS; i++)
        if (sqlite3_prepare_v3(db->sq, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &db->st[i], NULL))
            return db_fail(db, err);
    return 0;
}

static int open_database(struct kk_jdb *db, const struct kk_journal_options *o, struct kk_err *err)
{
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    int rc = kk_fs_join(db->path, sizeof db->path, o->dir, "journal.db", err);
    if (rc) return rc;
    snprintf(db->wal, sizeof db->wal, "%s-wal", db->path);
    if (sqlite3_open_v2(db->path, &db->sq, flags, NULL)) return db_fail(db, err);
    rc = configure(db, o->full, err);
    if (!rc) rc = check_intact(db, err);
    if (!rc) rc = check_contents(db, o, err);
    if (!rc) rc = prepare(db, err);
    if (!rc) rc = ask_int(db, "SELECT count(*) FROM run", &db->log_rows, err);
    if (!rc && (stat(db->path, &db->path_stat) || stat(db->wal, &db->wal_stat)))
        rc = kk_fail(err, KK_EIO, "cannot look at '%s': %s", db->path, strerror(errno));
    if (!rc && db->log_rows) rc = kk_jdb_fold(db, err);
    db->fold_rows = FOLD_ROWS;
    db->fold_bytes = FOLD_BYTES;
    if (!rc)
        rc = ask_int(db,
                     "SELECT max((SELECT coalesce(max(n), 0) FROM session),"
                     " (SELECT coalesce(max(at), 0) >> 32 FROM shared))",
                     &db->next_session, err);
    db->next_session++;
    return rc;
}

int kk_jdb_open(const struct kk_journal_options *o, struct kk_jdb **out, struct kk_err *err)
{
    if (!o->dir || !o->dir[0]) return kk_fail(err, KK_EINVAL, "journal: no directory is named");
    struct kk_jdb *db = kk_calloc(1, sizeof *db);
    if (!db) return kk_fail(err, KK_ENOMEM, "journal: no memory");
    db->lock = -1;
    int rc = make_directory(o->dir, err);
    if (!rc) rc = take_lock(db, o->dir, err);
    if (!rc) rc = open_database(db, o, err);
    if (!rc) {
        *out = db;
        return 0;
    }
    for (int i = 0; i < N_STATEMENTS; i++) sqlite3_finalize(db->st[i]);
    sqlite3_close(db->sq);
    if (db->lock >= 0) close(db->lock);
    kk_free(db);
    return rc;
}

/* SQLite empties and removes the WAL with the last connection. */
void kk_jdb_close(struct kk_jdb *db)
{
    if (!db) return;
    if (db->log_rows) kk_jdb_fold(db, NULL);
    for (int i = 0; i < N_STATEMENTS; i++) sqlite3_finalize(db->st[i]);
    sqlite3_close(db->sq);
    close(db->lock);
    kk_free(db);
}

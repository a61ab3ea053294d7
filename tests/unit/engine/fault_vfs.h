/* An SQLite VFS over the default one that fails, or holds up, the calls that change a file: write,
 * truncate, sync. fault_vfs_use() makes it the default. */
#ifndef KK_FAULT_VFS_H
#define KK_FAULT_VFS_H

#include <sqlite3.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

struct fault_file {
    sqlite3_file base;
    sqlite3_file *real;
};

static struct {
    sqlite3_vfs vfs, *real;
    _Atomic long calls;       /* so far */
    _Atomic long first, last; /* calls first .. last fail; first 0: none */
    _Atomic int code;         /* with this: SQLITE_FULL, SQLITE_IOERR_WRITE */
    _Atomic int hold;         /* calls wait while it is set */
} fault;

static int fault_strikes(void)
{
    long n = atomic_fetch_add(&fault.calls, 1) + 1, first = fault.first;
    while (fault.hold) usleep(500);
    return first && n >= first && n <= fault.last;
}

static sqlite3_file *real_of(sqlite3_file *f)
{
    return ((struct fault_file *)f)->real;
}

static int fault_close(sqlite3_file *f)
{
    return real_of(f)->pMethods->xClose(real_of(f));
}

static int fault_read(sqlite3_file *f, void *p, int n, sqlite3_int64 at)
{
    return real_of(f)->pMethods->xRead(real_of(f), p, n, at);
}

/* A write that fails has written a part, as a full disk does. */
static int fault_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 at)
{
    if (!fault_strikes()) return real_of(f)->pMethods->xWrite(real_of(f), p, n, at);
    if (n > 1) real_of(f)->pMethods->xWrite(real_of(f), p, n / 2, at);
    return fault.code;
}

static int fault_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    return fault_strikes() ? fault.code : real_of(f)->pMethods->xTruncate(real_of(f), size);
}

static int fault_sync(sqlite3_file *f, int flags)
{
    return fault_strikes() ? fault.code : real_of(f)->pMethods->xSync(real_of(f), flags);
}

static int fault_size(sqlite3_file *f, sqlite3_int64 *size)
{
    return real_of(f)->pMethods->xFileSize(real_of(f), size);
}

static int fault_lock(sqlite3_file *f, int kind)
{
    return real_of(f)->pMethods->xLock(real_of(f), kind);
}

static int fault_unlock(sqlite3_file *f, int kind)
{
    return real_of(f)->pMethods->xUnlock(real_of(f), kind);
}

static int fault_check_lock(sqlite3_file *f, int *out)
{
    return real_of(f)->pMethods->xCheckReservedLock(real_of(f), out);
}

static int fault_control(sqlite3_file *f, int op, void *arg)
{
    return real_of(f)->pMethods->xFileControl(real_of(f), op, arg);
}

static int fault_sector(sqlite3_file *f)
{
    return real_of(f)->pMethods->xSectorSize(real_of(f));
}

static int fault_traits(sqlite3_file *f)
{
    return real_of(f)->pMethods->xDeviceCharacteristics(real_of(f));
}

static int fault_open(sqlite3_vfs *v, const char *name, sqlite3_file *f, int flags, int *out)
{
    static const sqlite3_io_methods methods = {
        .iVersion = 1,
        .xClose = fault_close,
        .xRead = fault_read,
        .xWrite = fault_write,
        .xTruncate = fault_truncate,
        .xSync = fault_sync,
        .xFileSize = fault_size,
        .xLock = fault_lock,
        .xUnlock = fault_unlock,
        .xCheckReservedLock = fault_check_lock,
        .xFileControl = fault_control,
        .xSectorSize = fault_sector,
        .xDeviceCharacteristics = fault_traits,
    };
    struct fault_file *me = (struct fault_file *)f;
    (void)v;
    me->real = (sqlite3_file *)(me + 1);
    int rc = fault.real->xOpen(fault.real, name, me->real, flags, out);
    f->pMethods = rc ? NULL : &methods;
    return rc;
}

/* No call fails. */
static void fault_clear(void)
{
    fault.first = fault.last = fault.calls = 0;
}

/* Calls first .. last from now on fail. */
static void fault_arm(long first, long last, int code)
{
    fault.first = 0;
    fault.calls = 0;
    fault.last = last;
    fault.code = code;
    fault.first = first;
}

static void fault_vfs_use(void)
{
    fault.real = sqlite3_vfs_find(NULL);
    fault.vfs = *fault.real;
    fault.vfs.zName = "fault";
    fault.vfs.xOpen = fault_open;
    fault.vfs.szOsFile = (int)sizeof(struct fault_file) + fault.real->szOsFile;
    sqlite3_vfs_register(&fault.vfs, 1);
}

#endif

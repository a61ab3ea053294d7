#include "base/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int open_fail(struct kk_err *err, const char *path)
{
    int code = errno == ENOENT || errno == ENOTDIR ? KK_ENOENT : KK_EIO;
    return kk_fail(err, code, "cannot open '%s': %s", path, strerror(errno));
}

int kk_fs_map(const char *path, struct kk_map *out, struct kk_err *err)
{
    struct stat st;
    int rc = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return open_fail(err, path);
    *out = (struct kk_map){0};
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        rc = kk_fail(err, KK_EIO, "cannot read '%s': not a regular file", path);
        goto out;
    }
    if (st.st_size == 0) goto out;
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        rc = kk_fail(err, KK_EIO, "cannot map '%s': %s", path, strerror(errno));
        goto out;
    }
    *out = (struct kk_map){p, (size_t)st.st_size};
out:
    close(fd);
    return rc;
}

void kk_fs_unmap(struct kk_map *m)
{
    if (m->data) munmap((void *)(size_t)m->data, m->len);
    *m = (struct kk_map){0};
}

void kk_fs_map_rest(const struct kk_map *m)
{
    if (m->data) madvise((void *)(size_t)m->data, m->len, MADV_DONTNEED);
}

int kk_fs_read(const char *path, struct kk_buf *buf, struct kk_err *err)
{
    int use_stdin = strcmp(path, "-") == 0, rc = 0;
    int fd = use_stdin ? 0 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return open_fail(err, path);
    for (;;) {
        char chunk[65536];
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            rc = kk_fail(err, KK_EIO, "cannot read '%s': %s", path, strerror(errno));
            break;
        }
        if (n == 0) break;
        rc = kk_buf_append(buf, chunk, (size_t)n);
        if (rc) {
            kk_fail(err, rc, "cannot read '%s': %s", path,
                    rc == KK_ERANGE ? "larger than the limit for such a file" : "out of memory");
            break;
        }
    }
    if (!use_stdin) close(fd);
    return rc;
}

static _Atomic int write_fault;

void kk_fs_fail_writes(int code)
{
    atomic_store(&write_fault, code);
}

/* 1, and errno, if this operation must fail. */
static int deny(void)
{
    int code = atomic_load_explicit(&write_fault, memory_order_relaxed);
    if (code) errno = code;
    return code != 0;
}

static int write_all(int fd, const char *p, size_t n)
{
    const int fails = deny() ? errno : 0;
    if (fails) n /= 2;
    while (n) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        p += k;
        n -= (size_t)k;
    }
    if (fails) errno = fails;
    return fails ? -1 : 0;
}

/* Devices and pipes (/dev/stdout, /dev/full) cannot be renamed over: write straight into them. */
static int is_special(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && !S_ISREG(st.st_mode);
}

int kk_fs_out_open(const char *path, struct kk_fs_out *o, struct kk_err *err)
{
    o->special = is_special(path);
    o->path = path;
    if (snprintf(o->tmp, sizeof o->tmp, o->special ? "%s" : "%s.tmp", path) >= (int)sizeof o->tmp)
        return kk_fail(err, KK_ERANGE, "path too long: '%.64s...'", path);
    const int flags = O_WRONLY | O_CREAT | O_CLOEXEC | (o->special ? 0 : O_TRUNC);
    o->fd = deny() ? -1 : open(o->tmp, flags, 0644);
    if (o->fd < 0) return kk_fail(err, KK_EIO, "cannot write '%s': %s", path, strerror(errno));
    return 0;
}

int kk_fs_out_write(struct kk_fs_out *o, const void *p, size_t n, struct kk_err *err)
{
    if (!write_all(o->fd, p, n)) return 0;
    return kk_fail(err, KK_EIO, "cannot write '%s': %s", o->path, strerror(errno));
}

int kk_fs_out_close(struct kk_fs_out *o, int rc, struct kk_err *err)
{
    if (!rc && !o->special && (deny() || fsync(o->fd)))
        rc = kk_fail(err, KK_EIO, "cannot write '%s': %s", o->path, strerror(errno));
    if (close(o->fd) && !rc)
        rc = kk_fail(err, KK_EIO, "cannot write '%s': %s", o->path, strerror(errno));
    if (!rc && !o->special && (deny() || rename(o->tmp, o->path)))
        rc = kk_fail(err, KK_EIO, "cannot write '%s': %s", o->path, strerror(errno));
    if (rc && !o->special) unlink(o->tmp);
    return rc;
}

int kk_fs_write(const char *path, const void *data, size_t len, struct kk_err *err)
{
    struct kk_fs_out o;
    int rc = kk_fs_out_open(path, &o, err);
    if (rc) return rc;
    return kk_fs_out_close(&o, kk_fs_out_write(&o, data, len, err), err);
}

int kk_fs_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int kk_fs_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

int kk_fs_join(char *out, size_t cap, const char *dir, const char *name, struct kk_err *err)
{
    int n = snprintf(out, cap, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= cap) return kk_fail(err, KK_ERANGE, "path too long: '%.64s...'", dir);
    return 0;
}

/* Files: whole-file reads with a ceiling, read-only maps, atomic writes. */
#ifndef KK_BASE_FS_H
#define KK_BASE_FS_H

#include <stddef.h>

#include "base/buf.h"
#include "base/err.h"

struct kk_map {
    const unsigned char *data; /* NULL when len is 0 */
    size_t len;
};

/* Map a regular file read-only. Owned by the caller until kk_fs_unmap. KK_ENOENT, KK_EIO. */
int kk_fs_map(const char *path, struct kk_map *out, struct kk_err *err);
void kk_fs_unmap(struct kk_map *m);
/* The pages that were read go back to the system; reading them again brings them in again. */
void kk_fs_map_rest(const struct kk_map *m);

/* Append a whole file to buf (its max is the limit). "-" reads standard input. */
int kk_fs_read(const char *path, struct kk_buf *buf, struct kk_err *err);

/* Write data to path through path.tmp + fsync + rename: the file is old or new, never half.
 * A full disk is KK_EIO, naming path; the temporary is removed. */
int kk_fs_write(const char *path, const void *data, size_t len, struct kk_err *err);

/* The same in pieces. A file that was opened must be closed, with the rc of its writing: unless
 * that is 0 the temporary is removed and path stays as it was. */
struct kk_fs_out {
    const char *path; /* borrowed */
    char tmp[4096];
    int fd, special;
};
int kk_fs_out_open(const char *path, struct kk_fs_out *o, struct kk_err *err);
int kk_fs_out_write(struct kk_fs_out *o, const void *p, size_t n, struct kk_err *err);
int kk_fs_out_close(struct kk_fs_out *o, int rc, struct kk_err *err);

/* Tests: while code is not 0 whatever writes a file as above fails with this errno, a write after
 * half of its bytes. */
void kk_fs_fail_writes(int code);

/* 1 if path is a directory / exists. */
int kk_fs_is_dir(const char *path);
int kk_fs_exists(const char *path);

/* "dir/name" into out; KK_ERANGE if it does not fit. */
int kk_fs_join(char *out, size_t cap, const char *dir, const char *name, struct kk_err *err);

#endif

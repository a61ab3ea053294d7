#include "serve/auth_int.h"

#include <string.h>
#include <strings.h>

#include "base/fs.h"

enum { FILE_MAX = 1 << 20, TOKEN_MAX = 4096 };

static int add_line(struct kk_auth *a, const char *line, size_t n, struct kk_err *err)
{
    while (n && (line[n - 1] == '\r' || line[n - 1] == ' ' || line[n - 1] == '\t')) n--;
    if (!n || *line == '#') return 0;
    if (n > TOKEN_MAX) return kk_fail(err, KK_EINVAL, "a token of %zu bytes", n);
    for (size_t i = 0; i < n; i++)
        if (line[i] <= ' ' || line[i] > '~')
            return kk_fail(err, KK_EINVAL, "a token has a character that is not visible ASCII");
    int rc = kk_buf_append(&a->tokens, line, n);
    if (!rc) rc = kk_buf_putc(&a->tokens, 0);
    return rc ? kk_fail(err, rc, "cannot hold the tokens: %s", kk_strerror(rc)) : 0;
}

int kk_auth_load(struct kk_auth *a, const char *path, struct kk_err *err)
{
    struct kk_buf file;
    kk_buf_init(&a->tokens, FILE_MAX + 1);
    kk_buf_init(&file, FILE_MAX);
    int rc = kk_fs_read(path, &file, err), number = 0;
    for (const char *p = file.data, *end = p + file.len; !rc && p < end;) {
        const char *eol = memchr(p, '\n', (size_t)(end - p));
        size_t n = eol ? (size_t)(eol - p) : (size_t)(end - p);
        number++;
        rc = add_line(a, p, n, err);
        p += n + 1;
    }
    if (rc && file.len) kk_wrap(err, rc, "%s:%d", path, number);
    if (!rc && !a->tokens.len) rc = kk_fail(err, KK_EINVAL, "%s: holds no token", path);
    kk_buf_release(&file);
    if (rc) kk_auth_release(a);
    return rc;
}

void kk_auth_release(struct kk_auth *a)
{
    kk_buf_release(&a->tokens);
}

/* Every byte of the header is looked at, for every token. */
static int same(const char *token, size_t len, const char *given, size_t n)
{
    unsigned char diff = len != n;
    for (size_t i = 0; i < n; i++) diff |= (unsigned char)(token[i % len] ^ given[i]);
    return !diff;
}

int kk_auth_ok(const struct kk_auth *a, const void *header, size_t n)
{
    static const char scheme[] = "Bearer ";
    const size_t skip = sizeof scheme - 1;
    int ok = 0;
    if (!a->tokens.len) return 1;
    if (n <= skip || strncasecmp(header, scheme, skip) != 0) return 0;
    for (size_t at = 0; at < a->tokens.len;) {
        const char *token = a->tokens.data + at;
        size_t len = strlen(token);
        ok |= same(token, len, (const char *)header + skip, n - skip);
        at += len + 1;
    }
    return ok;
}

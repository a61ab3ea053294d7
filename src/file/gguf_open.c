/* One GGUF file, or every part of a split one, as a struct kk_model_file. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "file/gguf_int.h"

#define MAX_PARTS 999

/* ---- parts -------------------------------------------------------------------------------- */

/* "x-00002-of-00003.gguf": its number, how many there are, and the length of "x". */
struct part_name {
    int no, count;
    size_t stem;
};
enum { TAIL = sizeof "-00002-of-00003.gguf" - 1 };

/* Five digits, or -1. */
static int five_digits(const char *s)
{
    int v = 0;
    for (int i = 0; i < 5; i++) {
        if (s[i] < '0' || s[i] > '9') return -1;
        v = v * 10 + s[i] - '0';
    }
    return v;
}

static int is_part(const char *path, struct part_name *out)
{
    size_t n = strlen(path);
    if (n < TAIL) return 0;
    const char *t = path + n - TAIL;
    *out = (struct part_name){five_digits(t + 1), five_digits(t + 10), n - TAIL};
    return *t == '-' && !strncmp(t + 6, "-of-", 4) && !strcmp(t + 15, ".gguf") && out->no >= 1 &&
           out->no <= out->count && out->count <= MAX_PARTS;
}

/* The keys of part no of count agree with its name. */
static int check_part(const char *path, const struct kk_gguf *g, int no, int count,
                      struct kk_err *err)
{
    int64_t keyed_no = 0, keyed_count = 1;
    int rc = kk__gguf_int(g, "split.count", 0, 65535, 0, &keyed_count, err);
    if (!rc) rc = kk__gguf_int(g, "split.no", 0, 65535, 0, &keyed_no, err);
    if (rc) return kk_wrap(err, rc, "'%s'", path);
    if (keyed_count < 2 && count == 1) return 0;
    if (keyed_count != count)
        return kk_fail(err, KK_EFORMAT,
                       "'%s' is one of %lld parts by its key 'split.count', of %d by its name "
                       "(NAME-00001-of-00003.gguf)",
                       path, (long long)keyed_count, count);
    if (keyed_no != no)
        return kk_fail(err, KK_EFORMAT, "'%s' has 'split.no' %lld, expected %d", path,
                       (long long)keyed_no, no);
    return 0;
}

static int check_total(const struct kk_model_file *mf, const char *path, struct kk_err *err)
{
    int64_t total = (int64_t)mf->n;
    int rc = kk__gguf_int(mf->gguf, "split.tensors.count", 0, INT32_MAX, 0, &total, err);
    if (rc) return kk_wrap(err, rc, "'%s'", path);
    if (total == (int64_t)mf->n) return 0;
    return kk_fail(err, KK_EFORMAT,
                   "'%s': 'split.tensors.count' is %lld, the parts have %zu tensors", path,
                   (long long)total, mf->n);
}

/* ---- one file ----------------------------------------------------------------------------- */

static int add_tensors(struct kk_model_file *mf, const char *path, const struct kk_gguf *g,
                       enum gguf_arch arch, struct kk_err *err)
{
    char name[KK__MAX_NAME + 1];
    for (size_t i = 0; i < g->n; i++) {
        struct kk_tensor t = g->tensor[i].t;
        kk__gguf_rename(arch, t.name, name);
        t.name = name;
        int rc = kk__tensor_add(mf, path, &t, err);
        if (rc) return rc;
    }
    return 0;
}

/* Parse the newest shard. The first part's keys stay with mf. */
static int add_parsed(struct kk_model_file *mf, const char *path, const struct kk_map *map, int no,
                      int count, const struct gguf_class **class, struct kk_err *err)
{
    struct kk_gguf g;
    int rc = kk__gguf_parse(path, map->data, map->len, &g, err);
    if (rc) return rc;
    rc = check_part(path, &g, no, count, err);
    if (!rc && !no) {
        rc = kk__gguf_class(&g, class, err);
        if (rc) kk_wrap(err, rc, "'%s'", path);
    }
    if (!rc) rc = add_tensors(mf, path, &g, (*class)->arch, err);
    if (!rc && !no) {
        mf->gguf = kk_malloc(sizeof *mf->gguf);
        if (!mf->gguf) rc = kk_fail(err, KK_ENOMEM, "out of memory reading '%s'", path);
    }
    if (rc || no) {
        kk__gguf_release(&g);
        return rc;
    }
    *mf->gguf = g;
    return 0;
}

static int add_part(struct kk_model_file *mf, const char *path, int no, int count,
                    const struct gguf_class **class, struct kk_err *err)
{
    struct kk_shard *s = NULL;
    int rc = kk__shard_map(mf, path, &s, err);
    return rc ? rc : add_parsed(mf, path, &s->map, no, count, class, err);
}

/* ---- the model ---------------------------------------------------------------------------- */

static int finish(struct kk_model_file *mf, const char *path, const struct gguf_class *class,
                  struct kk_err *err)
{
    int rc = check_total(mf, path, err);
    if (rc) return rc;
    rc = kk__gguf_config(mf, class, err);
    return rc ? kk_wrap(err, rc, "'%s'", path) : 0;
}

int kk__gguf_open(struct kk_model_file *mf, const char *path, struct kk_err *err)
{
    const struct gguf_class *class = NULL;
    struct part_name p;
    char part[4096];
    int rc = 0;
    if (!is_part(path, &p)) {
        rc = add_part(mf, path, 0, 1, &class, err);
        return rc ? rc : finish(mf, path, class, err);
    }
    for (int no = 0; !rc && no < p.count; no++) {
        if (snprintf(part, sizeof part, "%.*s-%05d-of-%05d.gguf", (int)p.stem, path, no + 1,
                     p.count) >= (int)sizeof part)
            return kk_fail(err, KK_ERANGE, "path too long: '%.64s...'", path);
        rc = add_part(mf, part, no, p.count, &class, err);
    }
    return rc ? rc : finish(mf, path, class, err);
}

int kk__gguf_open_memory(struct kk_model_file *mf, const void *data, size_t len, struct kk_err *err)
{
    const struct gguf_class *class = NULL;
    const struct kk_map map = {data, len};
    int rc = add_parsed(mf, "memory", &map, 0, 1, &class, err);
    return rc ? rc : finish(mf, "memory", class, err);
}

int kk_path_is_gguf(const char *path)
{
    char magic[4] = {0};
    size_t n = strlen(path);
    if (kk_fs_is_dir(path)) return 0;
    if (n > 5 && !strcmp(path + n - 5, ".gguf")) return 1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    int is = read(fd, magic, sizeof magic) == (ssize_t)sizeof magic && !memcmp(magic, "GGUF", 4);
    close(fd);
    return is;
}

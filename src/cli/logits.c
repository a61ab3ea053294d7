/* kakeya logits: float32 [tokens, vocabulary] of a list of ids, as a NumPy file (version 1.0, C
 * order, little-endian), row by row: the whole would be gigabytes. A regular file appears when it
 * is whole; a device or pipe is written into as it goes. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "cli/common.h"

enum { IDS_FILE_MAX = 64 << 20, NPY_HEADER = 128 };

struct npy {
    FILE *f;
    const char *path;
    char temporary[4096]; /* "" where path is written into directly */
};

static int npy_fail(struct npy *o, int number, struct kk_err *err)
{
    if (o->f) fclose(o->f);
    if (*o->temporary) unlink(o->temporary);
    o->f = NULL;
    return kk_fail(err, KK_EIO, "cannot write '%s': %s", o->path, strerror(number));
}

static int npy_open(struct npy *o, const char *path, size_t rows, size_t cols, struct kk_err *err)
{
    struct stat st;
    char h[NPY_HEADER + 1];
    int special = stat(path, &st) == 0 && !S_ISREG(st.st_mode);
    *o = (struct npy){.path = path};
    if (!special &&
        snprintf(o->temporary, sizeof o->temporary, "%s.tmp", path) >= (int)sizeof o->temporary)
        return kk_fail(err, KK_ERANGE, "path too long: '%.64s...'", path);
    o->f = fopen(special ? path : o->temporary, "wb");
    if (!o->f) {
        int number = errno;
        *o->temporary = 0;
        return npy_fail(o, number, err);
    }
    /* NOLINTNEXTLINE(bugprone-not-null-terminated-result): bytes; the text after them ends */
    memcpy(h, "\x93NUMPY\x01\x00\x76\x00", 10); /* 0x76: what follows, to 128 */
    int n = 10 + snprintf(h + 10, sizeof h - 10,
                          "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", rows,
                          cols);
    memset(h + n, ' ', (size_t)(NPY_HEADER - n));
    h[NPY_HEADER - 1] = '\n';
    return fwrite(h, 1, NPY_HEADER, o->f) == NPY_HEADER ? 0 : npy_fail(o, errno, err);
}

/* Everything is on the disk, under its name; or nothing is. */
static int npy_close(struct npy *o, struct kk_err *err)
{
    if (fflush(o->f) || (*o->temporary && fsync(fileno(o->f)))) return npy_fail(o, errno, err);
    FILE *f = o->f;
    o->f = NULL;
    if (fclose(f) || (*o->temporary && rename(o->temporary, o->path)))
        return npy_fail(o, errno, err);
    return 0;
}

/* ---- */

struct job {
    struct kk_cli *cli;
    struct npy out;
    size_t n, cols;
    int failed; /* errno of a write */
};

static int on_row(void *arg, int64_t position, const float *logits)
{
    struct job *j = arg;
    kk_progress_show(&j->cli->progress, "logits", (uint64_t)position + 1, j->n, KK_PROGRESS_TOKENS);
    if (fwrite(logits, sizeof *logits, j->cols, j->out.f) == j->cols) return 0;
    j->failed = errno ? errno : EIO;
    return 1;
}

static int read_ids(const char *path, struct kk_ids *out, struct kk_err *err)
{
    json_t *list = NULL;
    int rc = kk_json_load(path, IDS_FILE_MAX, &list, err);
    if (rc) return rc;
    if (!json_is_array(list) || !json_array_size(list))
        rc = kk_fail(err, KK_EFORMAT, "'%s' must hold a JSON list of token ids, such as [2, 5, 17]",
                     path);
    for (size_t i = 0; !rc && i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id > UINT32_MAX)
            rc = kk_fail(err, KK_EFORMAT, "'%s': entry %zu is no token id", path, i);
        else if (kk_ids_push(out, (uint32_t)id))
            rc = kk_fail(err, KK_ENOMEM, "out of memory for token ids");
    }
    json_decref(list);
    return rc;
}

static int compute(struct job *j, const struct kk_ids *ids, const char *path, struct kk_err *err)
{
    struct kk_session *s = NULL;
    int rc = kk_session_open(j->cli->engine, &s, err);
    if (!rc) rc = npy_open(&j->out, path, j->n, j->cols, err);
    if (!rc) {
        rc = kk_session_logits(s, ids->id, ids->n, on_row, j, err);
        kk_progress_clear(&j->cli->progress);
        if (j->failed) {
            rc = npy_fail(&j->out, j->failed, err);
        } else if (rc) {
            npy_fail(&j->out, EIO, NULL);
        } else {
            rc = npy_close(&j->out, err);
        }
    }
    kk_session_close(s);
    return rc;
}

int kk_cli_logits(struct kk_cli *cli, struct kk_err *err)
{
    struct job j = {.cli = cli};
    struct kk_ids ids = {0};
    const char *in = kk_config_text(&cli->cfg, KK_OPT_IDS_FILE);
    const char *path = kk_config_text(&cli->cfg, KK_OPT_OUT);
    int rc = kk_cli_no_words(cli, err);
    if (!rc && !in) rc = kk_fail(err, KK_EUSAGE, "no ids given: --ids FILE.json");
    if (!rc && !path) rc = kk_fail(err, KK_EUSAGE, "no output given: -o FILE.npy");
    if (!rc) rc = read_ids(in, &ids, err);
    if (!rc) rc = kk_cli_open_engine(cli, err);
    uint64_t t0 = kk_now_ns();
    if (!rc) {
        j.n = ids.n;
        j.cols = (size_t)cli->info.vocabulary;
        cli->reading_quiet = 1;
        rc = compute(&j, &ids, path, err);
    }
    double s = kk_seconds_since(t0);
    kk_ids_release(&ids);
    if (rc) return rc;
    fprintf(stderr, "kakeya: logits [%zu, %zu] in '%s', %.0f tok/s\n", j.n, j.cols, path,
            kk_cli_rate((double)j.n, s));
    json_t *r = json_object();
    json_object_set_new(r, "file", json_string(path));
    json_object_set_new(r, "tokens", json_integer((json_int_t)j.n));
    json_object_set_new(r, "vocabulary", json_integer((json_int_t)j.cols));
    json_object_set_new(r, "tok_s", json_real(kk_cli_rate((double)j.n, s)));
    kk_cli_describe_run(cli, r);
    return kk_cli_report(cli, r, err);
}

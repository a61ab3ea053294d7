#include "base/json.h"

#include "base/fs.h"

int kk_json_parse(const char *text, size_t len, const char *what, json_t **out, struct kk_err *err)
{
    json_error_t e;
    json_t *v = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!v)
        return kk_fail(err, KK_EFORMAT, "%s is not valid JSON (line %d): %s", what, e.line, e.text);
    *out = v;
    return 0;
}

int kk_json_load(const char *path, size_t max, json_t **out, struct kk_err *err)
{
    struct kk_buf b;
    char what[600];
    kk_buf_init(&b, max);
    int rc = kk_fs_read(path, &b, err);
    snprintf(what, sizeof what, "'%s'", path);
    if (!rc) rc = kk_json_parse(b.data ? b.data : "", b.len, what, out, err);
    kk_buf_release(&b);
    return rc;
}

/* 1 = present, 0 = absent and allowed, negative = error. */
static int lookup(const json_t *obj, const char *key, int required, const json_t **out,
                  struct kk_err *err)
{
    *out = json_object_get(obj, key);
    if (*out && !json_is_null(*out)) return 1;
    if (!required) return 0;
    return kk_fail(err, KK_EFORMAT, "'%s' is missing", key);
}

int kk_json_int(const json_t *obj, const char *key, int64_t min, int64_t max, int required,
                int64_t *out, struct kk_err *err)
{
    const json_t *v;
    int rc = lookup(obj, key, required, &v, err);
    if (rc <= 0) return rc;
    if (!json_is_integer(v)) return kk_fail(err, KK_EFORMAT, "'%s' must be an integer", key);
    int64_t i = json_integer_value(v);
    if (i < min || i > max)
        return kk_fail(err, KK_EFORMAT, "'%s' is %lld, expected %lld to %lld", key, (long long)i,
                       (long long)min, (long long)max);
    *out = i;
    return 0;
}

int kk_json_real(const json_t *obj, const char *key, double min, double max, int required,
                 double *out, struct kk_err *err)
{
    const json_t *v;
    int rc = lookup(obj, key, required, &v, err);
    if (rc <= 0) return rc;
    if (!json_is_number(v)) return kk_fail(err, KK_EFORMAT, "'%s' must be a number", key);
    double d = json_number_value(v);
    if (!(d >= min && d <= max))
        return kk_fail(err, KK_EFORMAT, "'%s' is %g, expected %g to %g", key, d, min, max);
    *out = d;
    return 0;
}

int kk_json_bool(const json_t *obj, const char *key, int required, int *out, struct kk_err *err)
{
    const json_t *v;
    int rc = lookup(obj, key, required, &v, err);
    if (rc <= 0) return rc;
    if (!json_is_boolean(v)) return kk_fail(err, KK_EFORMAT, "'%s' must be true or false", key);
    *out = json_is_true(v);
    return 0;
}

int kk_json_str(const json_t *obj, const char *key, int required, const char **out,
                struct kk_err *err)
{
    const json_t *v;
    int rc = lookup(obj, key, required, &v, err);
    if (rc <= 0) return rc;
    if (!json_is_string(v)) return kk_fail(err, KK_EFORMAT, "'%s' must be a string", key);
    *out = json_string_value(v);
    return 0;
}

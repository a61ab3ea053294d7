/* The tokenizer of a snapshot directory, with the chat template that lies beside it. */
#include <string.h>

#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"
#include "tok/tok_int.h"

#define MAX_TEMPLATE ((size_t)1 << 20)
#define MAX_CONFIG   ((size_t)64 << 20)

static int keep(struct kk_tok *t, const char *text, size_t len, struct kk_err *err)
{
    if (memchr(text, 0, len)) return kk_fail(err, KK_EFORMAT, "the chat template holds a NUL");
    t->chat_template = kk_strndup(text, len);
    return t->chat_template ? 0 : kk_fail(err, KK_ENOMEM, "out of memory");
}

static int from_jinja(struct kk_tok *t, const char *path, struct kk_err *err)
{
    struct kk_buf text;
    kk_buf_init(&text, MAX_TEMPLATE);
    int rc = kk_fs_read(path, &text, err);
    if (!rc) rc = keep(t, text.len ? text.data : "", text.len, err);
    kk_buf_release(&text);
    return rc;
}

/* "chat_template": a text, or a list of {"name", "template"}, of which "default" is ours. */
static int from_config(struct kk_tok *t, const json_t *root, struct kk_err *err)
{
    const json_t *v = json_object_get(root, "chat_template"), *of;
    size_t i;
    if (json_is_array(v)) {
        const json_t *list = v;
        v = NULL;
        json_array_foreach(list, i, of)
        {
            const char *name = json_string_value(json_object_get(of, "name"));
            if (name && !strcmp(name, "default")) v = json_object_get(of, "template");
        }
    }
    if (!v || json_is_null(v)) return 0;
    if (!json_is_string(v))
        return kk_fail(err, KK_EFORMAT, "'chat_template' is neither a text nor a list of them");
    return keep(t, json_string_value(v), json_string_length(v), err);
}

static int load_template(struct kk_tok *t, const char *dir, struct kk_err *err)
{
    char path[4096];
    json_t *root = NULL;
    int rc = kk_fs_join(path, sizeof path, dir, "chat_template.jinja", err);
    if (!rc && kk_fs_exists(path)) {
        rc = from_jinja(t, path, err);
        return rc ? kk_wrap(err, rc, "'%s'", path) : 0;
    }
    if (!rc) rc = kk_fs_join(path, sizeof path, dir, "tokenizer_config.json", err);
    if (rc || !kk_fs_exists(path)) return rc;
    rc = kk_json_load(path, MAX_CONFIG, &root, err);
    if (rc) return rc;
    rc = from_config(t, root, err);
    json_decref(root);
    return rc ? kk_wrap(err, rc, "'%s'", path) : 0;
}

int kk_tok_open_dir(const char *dir, struct kk_tok **out, struct kk_err *err)
{
    char path[4096];
    struct kk_tok *t = NULL;
    int rc = kk_fs_join(path, sizeof path, dir, "tokenizer.json", err);
    if (!rc) rc = kk_tok_open(path, &t, err);
    if (!rc) rc = load_template(t, dir, err);
    if (rc) {
        kk_tok_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

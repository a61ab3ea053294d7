/* GGUF files: whatever opens can be read to its last number, and its tokenizer works. */
#include "fuzz.h"

#include "file/file.h"
#include "tok/chat.h"
#include "tok/tok.h"

enum { FILE_MAX = 1 << 16 };

/* Every tensor is inside the file, and is what kk_model_file_get gives. */
static void read_tensors(const struct kk_model_file *mf)
{
    struct kk_tensor t, u;
    struct kk_err err = {0};
    static float y[FILE_MAX * 2]; /* no type has more than 2 numbers a byte */
    for (size_t i = 0; !kk_model_file_at(mf, i, &t); i++) {
        int rc = kk_model_file_get(mf, t.name, t.rank, t.shape, &u, &err);
        if (rc) fuzz_failed(rc, &err);
        FUZZ_CHECK(!rc && u.bytes <= FILE_MAX && u.count <= sizeof y / sizeof *y);
        FUZZ_CHECK(u.bytes == u.count / kk_dtype_block(u.dtype) * kk_dtype_block_bytes(u.dtype));
        kk_tensor_dequant(&u, 0, u.count, y);
        t.shape[0]++;
        fuzz_failed(kk_model_file_get(mf, t.name, t.rank, t.shape, &u, &err), &err);
    }
}

static void read_keys(const struct kk_model_file *mf)
{
    struct kk_buf value;
    const char *key;
    kk_buf_init(&value, 1 << 20);
    for (size_t i = 0; !kk_model_file_meta(mf, i, &key, &value); i++) {
        FUZZ_CHECK(*key && value.len && !memchr(value.data, '\n', value.len));
        kk_buf_reset(&value);
    }
    kk_buf_release(&value);
}

static void use(const struct kk_tok *t)
{
    static const char text[] = "the  quick\n\n<a> na\xc3\xafve\xff 1987 <bos>";
    struct kk_ids ids = {0};
    struct kk_buf back;
    struct kk_chat chat;
    struct kk_err err = {0};
    kk_buf_init(&back, 1 << 22);
    int rc = kk_tok_encode(t, text, sizeof text - 1, 1, &ids, &err);
    if (rc) fuzz_failed(rc, &err);
    for (size_t i = 0; i < ids.n; i++) FUZZ_CHECK(kk_tok_text(t, ids.id[i]));
    if (!rc && !kk_tok_decode(t, ids.id, ids.n, 0, &back, &err))
        FUZZ_CHECK(fuzz_is_utf8(back.data, back.len));
    rc = kk_chat_init(&chat, t, "auto", &err);
    if (rc) fuzz_failed(rc, &err);
    kk_buf_release(&back);
    kk_ids_release(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kk_model_file *mf = NULL;
    struct kk_tok *t = NULL;
    struct kk_vocab v = {0};
    struct kk_err err = {0};
    if (size > FILE_MAX) return 0;
    void *copy = aligned_alloc(64, (size + 64) & ~(size_t)63);
    FUZZ_CHECK(copy);
    memcpy(copy, data, size);
    int rc = kk_model_file_open_memory(copy, size, &mf, &err);
    if (rc) {
        fuzz_failed(rc, &err);
        FUZZ_CHECK(!mf);
    } else {
        FUZZ_CHECK(json_is_object(kk_model_file_config(mf)));
        read_tensors(mf);
        read_keys(mf);
        rc = kk_model_file_vocab(mf, &v, &err);
        if (!rc) rc = kk_tok_from_vocab(&v, &t, &err);
        if (rc)
            fuzz_failed(rc, &err);
        else
            use(t);
    }
    kk_tok_close(t);
    kk_vocab_release(&v);
    kk_model_file_close(mf);
    free(copy);
    return 0;
}

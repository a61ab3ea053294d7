/* Weight files. The first byte chooses what the rest is:
 *   r   a whole safetensors file, length and all
 *   i   a model.safetensors.index.json over two good shards
 *   else  two bytes, the length of the data; then a header: the file is put together around it, so
 *         that the fuzzer need not keep a length in step with a text */
#include "fuzz.h"

#include "file/file.h"

static const char good_config[] = "{\"architectures\": [\"X\"], \"model_type\": \"x\"}";

static void put_file(const char *name, const char *header, size_t len, size_t data)
{
    static unsigned char file[1 << 20];
    uint64_t n = len;
    size_t total = 8 + len + data;
    FUZZ_CHECK(total <= sizeof file);
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)(n >> 8 * i);
    memcpy(file + 8, header, len);
    for (size_t i = 0; i < data; i++) file[8 + len + i] = (unsigned char)i;
    fuzz_file(name, file, total);
}

static void put_shards(const uint8_t *index, size_t size)
{
    static const char a[] = "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}";
    static const char b[] = "{\"y\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[0,8]},"
                            "\"z\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[8,16]}}";
    static int done;
    if (!done) put_file("a.safetensors", a, sizeof a - 1, 24);
    if (!done++) put_file("b.safetensors", b, sizeof b - 1, 16);
    fuzz_file("model.safetensors.index.json", index, size);
}

/* Every tensor has the bytes its shape says, inside the file, and can be read. */
static void read_all(const struct kk_model_file *mf)
{
    struct kk_tensor t, u;
    struct kk_err err = {0};
    uint64_t shape[KK_MAX_RANK];
    for (size_t i = 0; i < kk_model_file_count(mf); i++) {
        FUZZ_CHECK(!kk_model_file_at(mf, i, &t));
        FUZZ_CHECK(kk_model_file_has(mf, t.name) && t.rank <= KK_MAX_RANK);
        memcpy(shape, t.shape, sizeof shape);
        int rc = kk_model_file_get(mf, t.name, t.rank, shape, &u, &err);
        FUZZ_CHECK((rc == 0) == t.loadable);
        if (rc) fuzz_failed(rc, &err);
        if (rc) continue;
        uint64_t sum = 0;
        for (uint64_t k = 0; k < u.bytes; k++) sum += ((const unsigned char *)u.data)[k];
        FUZZ_CHECK(u.bytes == u.count * kk_dtype_bytes(u.dtype) && sum <= 255 * u.bytes);
        FUZZ_CHECK(!u.count || !((uintptr_t)u.data % kk_dtype_bytes(u.dtype)));
        float last = 0;
        if (u.count) kk_tensor_read(&u, u.count - 1, 1, &last);
        shape[0]++;
        if (t.rank) fuzz_failed(kk_model_file_get(mf, t.name, t.rank, shape, &u, &err), &err);
    }
    FUZZ_CHECK(kk_model_file_at(mf, kk_model_file_count(mf), &t));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kk_model_file *mf = NULL;
    struct kk_err err = {0};
    int rc;
    if (size < 3 || size > 1 << 16) return 0;
    fuzz_file("config.json", good_config, sizeof good_config - 1);
    if (data[0] == 'i') {
        remove(fuzz_path("model.safetensors"));
        put_shards(data + 1, size - 1);
        rc = kk_model_file_open(fuzz_dir(), &mf, &err);
    } else {
        if (data[0] == 'r')
            fuzz_file("model.safetensors", data + 1, size - 1);
        else
            put_file("model.safetensors", (const char *)data + 3, size - 3,
                     (size_t)data[1] << 8 | data[2]);
        rc = kk_model_file_open_parts(fuzz_dir(), "config.json", "model.safetensors", &mf, &err);
    }
    if (rc)
        fuzz_failed(rc, &err);
    else
        read_all(mf);
    kk_model_file_close(mf);
    return 0;
}

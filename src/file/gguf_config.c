/* A GGUF's keys as the config.json of the Hugging Face class: same names, same meaning, so that the
 * model layer knows one vocabulary (docs/formats/gguf.md has the table). Contradictions are found
 * here, where the key at fault can be named. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "file/gguf_int.h"

#define MAX_DIM    (1 << 24)
#define MAX_LAYERS 1024

/* ---- the config under construction; the first error stays ----------------------------------- */

struct build {
    struct kk_model_file *mf;
    const struct kk_gguf *g;
    const char *arch; /* the prefix of its keys */
    json_t *o;
    int64_t C, L, H, D; /* hidden size, layers, heads, head dim (of full layers) */
    struct kk_err *err;
    int rc;
};

static const char *full_key(const struct build *b, char buf[static 128], const char *key)
{
    snprintf(buf, 128, "%s.%s", b->arch, key);
    return buf;
}

static void set(struct build *b, const char *name, json_t *v)
{
    if (b->rc) {
        json_decref(v);
        return;
    }
    if (!v || json_object_set_new(b->o, name, v))
        b->rc = kk_fail(b->err, KK_ENOMEM, "out of memory for the config");
}

static void set_int(struct build *b, const char *name, int64_t v)
{
    set(b, name, json_integer((json_int_t)v));
}

/* fallback < 0: the key is required. */
static int64_t get_int(struct build *b, const char *key, int64_t min, int64_t max, int64_t fallback)
{
    char k[128];
    int64_t v = fallback;
    if (!b->rc) b->rc = kk__gguf_int(b->g, full_key(b, k, key), min, max, fallback < 0, &v, b->err);
    return b->rc ? min : v;
}

static double get_real(struct build *b, const char *key, double min, double max, double fallback)
{
    char k[128];
    double v = fallback;
    if (!b->rc)
        b->rc = kk__gguf_real(b->g, full_key(b, k, key), min, max, fallback < 0, &v, b->err);
    return b->rc ? min : v;
}

static int has_key(const struct build *b, const char *key)
{
    char k[128];
    return kk__gguf_find(b->g, full_key(b, k, key)) != NULL;
}

static void contradiction(struct build *b, const char *key, int64_t v, const char *what,
                          int64_t other)
{
    char k[128];
    if (!b->rc)
        b->rc = kk_fail(b->err, KK_EFORMAT, "key '%s' is %lld, but %s %lld", full_key(b, k, key),
                        (long long)v, what, (long long)other);
}

/* A number for each layer: one for all, or a list of L. */
static void get_layers(struct build *b, const char *key, int64_t min, int64_t max, int64_t fallback,
                       int64_t out[MAX_LAYERS])
{
    char k[128];
    const struct gguf_kv *kv = kk__gguf_find(b->g, full_key(b, k, key));
    if (!kv || !kv->is_array) {
        int64_t v = get_int(b, key, min, max, fallback);
        for (int64_t l = 0; l < b->L; l++) out[l] = v;
        return;
    }
    if (!b->rc && kv->n != (uint64_t)b->L)
        b->rc = kk_fail(b->err, KK_EFORMAT, "key '%s' has %llu entries for %lld layers", k,
                        (unsigned long long)kv->n, (long long)b->L);
    for (int64_t l = 0; !b->rc && l < b->L; l++)
        if (!kk__gguf_whole(kv, (uint64_t)l, &out[l]) || out[l] < min || out[l] > max)
            b->rc =
                kk_fail(b->err, KK_EFORMAT, "key '%s': layer %lld is no number from %lld to %lld",
                        k, (long long)l, (long long)min, (long long)max);
}

/* The same number for every layer for which of[l] == kind (of NULL: for all). */
static int64_t one_of_layers(struct build *b, const char *key, const int64_t v[MAX_LAYERS],
                             const int64_t *of, int64_t kind)
{
    char k[128];
    int64_t first = -1;
    for (int64_t l = 0; !b->rc && l < b->L; l++) {
        if (of && of[l] != kind) continue;
        if (first < 0) first = v[l];
        if (v[l] != first)
            b->rc = kk_fail(b->err, KK_EUNSUPPORTED,
                            "key '%s' differs between layers of one kind (%lld and %lld), which is "
                            "not supported",
                            full_key(b, k, key), (long long)first, (long long)v[l]);
    }
    return first;
}

/* ---- what all architectures have ---------------------------------------------------------- */

/* [rows, cols] of a matrix that must be there. */
static const struct kk_tensor *matrix(struct build *b, const char *name)
{
    const struct kk_tensor *t = kk__tensor_find(b->mf, name);
    if (b->rc) return NULL;
    if (!t) b->rc = kk_fail(b->err, KK_ENOENT, "tensor '%s' is missing", name);
    if (t && t->rank != 2)
        b->rc =
            kk_fail(b->err, KK_EFORMAT, "tensor '%s' has %d dimensions, expected 2", name, t->rank);
    return b->rc ? NULL : t;
}

static void set_vocabulary(struct build *b)
{
    const struct kk_tensor *t = matrix(b, "model.embed_tokens.weight");
    const struct gguf_kv *tokens = kk__gguf_find(b->g, "tokenizer.ggml.tokens");
    if (!t) return;
    int64_t V = (int64_t)t->shape[0], keyed = get_int(b, "vocab_size", 1, MAX_DIM, V);
    if (keyed != V) contradiction(b, "vocab_size", keyed, "the embedding's rows are", V);
    if (!b->rc && tokens && tokens->is_array && tokens->n > (uint64_t)V)
        b->rc = kk_fail(b->err, KK_EFORMAT,
                        "key 'tokenizer.ggml.tokens' has %llu tokens, the embedding %lld rows",
                        (unsigned long long)tokens->n, (long long)V);
    if (!b->rc && t->shape[1] != (uint64_t)b->C)
        contradiction(b, "embedding_length", b->C, "the embedding's rows have length",
                      (int64_t)t->shape[1]);
    set_int(b, "vocab_size", V);
    set(b, "tie_word_embeddings", json_boolean(!kk__tensor_find(b->mf, "lm_head.weight")));
}

/* bos_token_id only if a text begins with it: add_bos_token says, or by default the model. */
static void set_specials(struct build *b)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    int64_t bos = -1, id, last = -1, V = json_integer_value(json_object_get(b->o, "vocab_size"));
    int add = kk__gguf_adds_bos(b->g);
    json_t *eos = json_array();
    if (!b->rc) b->rc = kk__gguf_bool(b->g, "tokenizer.ggml.add_bos_token", &add, b->err);
    if (!b->rc)
        b->rc = kk__gguf_int(b->g, "tokenizer.ggml.bos_token_id", 0, V - 1, 0, &bos, b->err);
    for (int i = 0; !b->rc && i < 3; i++) {
        id = -1;
        b->rc = kk__gguf_int(b->g, ends[i], 0, V - 1, 0, &id, b->err);
        if (id >= 0 && id != last) json_array_append_new(eos, json_integer(id));
        last = id;
    }
    set(b, "bos_token_id", add && bos >= 0 ? json_integer(bos) : json_null());
    set(b, "eos_token_id", eos);
}

static void check_heads(struct build *b, int64_t G)
{
    if (!b->rc && b->H % G)
        contradiction(b, "attention.head_count_kv", G, "it must divide attention.head_count,",
                      b->H);
}

/* key_length of full layers; values are as wide, and all of it turns. */
static void get_head_dim(struct build *b)
{
    int64_t whole = b->H ? b->C / b->H : 0, v, rotary;
    if (!b->rc && !has_key(b, "attention.key_length") && b->C % b->H)
        contradiction(b, "attention.head_count", b->H,
                      "there is no attention.key_length and it does not divide embedding_length,",
                      b->C);
    b->D = get_int(b, "attention.key_length", 2, 1024, whole);
    v = get_int(b, "attention.value_length", 1, 1024, b->D);
    rotary = get_int(b, "rope.dimension_count", 1, 1024, b->D);
    if (!b->rc && b->D < 2)
        contradiction(b, "attention.key_length", b->D, "it must be at least", 2);
    if (v != b->D) contradiction(b, "attention.value_length", v, "attention.key_length is", b->D);
    if (rotary != b->D)
        contradiction(b, "rope.dimension_count", rotary, "attention.key_length is", b->D);
}

/* A file that has layers beyond block_count would run, and make nonsense. */
static void check_layers(struct build *b)
{
    static const char *const prefix[] = {"model.layers.", "blk."}; /* renamed, unknown */
    for (size_t i = 0; !b->rc && i < b->mf->n; i++)
        for (int k = 0; k < 2; k++) {
            const char *at = b->mf->tensor[i].name;
            size_t n = strlen(prefix[k]);
            if (strncmp(at, prefix[k], n) || at[n] < '0' || at[n] > '9') continue;
            long long layer = strtoll(at + n, NULL, 10);
            if (layer >= b->L)
                contradiction(b, "block_count", b->L, "there is a tensor of layer", layer);
        }
}

/* Sizes, in the order of struct build. */
static void set_common(struct build *b)
{
    int64_t F[MAX_LAYERS], H[MAX_LAYERS];
    b->C = get_int(b, "embedding_length", 1, MAX_DIM, -1);
    b->L = get_int(b, "block_count", 1, MAX_LAYERS, -1);
    check_layers(b);
    get_layers(b, "attention.head_count", 1, 1024, -1, H);
    b->H = one_of_layers(b, "attention.head_count", H, NULL, 0);
    get_layers(b, "feed_forward_length", 1, MAX_DIM, -1, F);
    set_int(b, "hidden_size", b->C);
    set_int(b, "num_hidden_layers", b->L);
    set_int(b, "num_attention_heads", b->H);
    set_int(b, "intermediate_size", one_of_layers(b, "feed_forward_length", F, NULL, 0));
    set_int(b, "max_position_embeddings", get_int(b, "context_length", 1, 1 << 30, -1));
    set(b, "rms_norm_eps", json_real(get_real(b, "attention.layer_norm_rms_epsilon", 0, 1, -1)));
    get_head_dim(b);
    set_vocabulary(b);
    set_specials(b);
}

/* ---- rotary embeddings -------------------------------------------------------------------- */

/* rope.scaling.*: null, or an object that the model layer may refuse by its type. */
static json_t *scaling(struct build *b)
{
    char k[128], *type = NULL;
    json_t *o = json_null();
    if (!b->rc) b->rc = kk__gguf_text(b->g, full_key(b, k, "rope.scaling.type"), &type, b->err);
    if (!b->rc && type && strcmp(type, "none")) {
        int64_t original = get_int(b, "rope.scaling.original_context_length", 1, 1 << 30, 0);
        o = json_pack("{s:s, s:f}", "rope_type", type, "factor",
                      get_real(b, "rope.scaling.factor", 1e-6, 1e6, -1));
        if (original && o)
            json_object_set_new(o, "original_max_position_embeddings", json_integer(original));
    }
    kk_free(type);
    return o;
}

/* Factor of frequency i of n under Llama 3's rule with its published constants. */
static double llama3_factor(double theta, double factor, int i, int n)
{
    const double low = 1, high = 4, original = 8192;
    double wave = 6.283185307179586 * pow(theta, (double)i / n);
    if (wave < original / high) return 1;
    if (wave > original / low) return factor;
    double smooth = (original / wave - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
}

/* The frequency divisors of rope_freqs.weight, n of them; NULL (not an error) if there is none. */
static float *rope_freqs(struct build *b, int64_t n)
{
    const struct kk_tensor *t = kk__tensor_find(b->mf, "rope_freqs.weight");
    if (b->rc || !t) return NULL;
    if (t->rank != 1 || t->count != (uint64_t)n || t->dtype != KK_F32) {
        b->rc = kk_fail(b->err, KK_EFORMAT,
                        "tensor 'rope_freqs.weight' must hold %lld F32 numbers, one for each pair",
                        (long long)n);
        return NULL;
    }
    float *f = kk_array((size_t)n, sizeof *f);
    if (f)
        kk_tensor_dequant(t, 0, t->count, f);
    else
        b->rc = kk_fail(b->err, KK_ENOMEM, "out of memory for rope_freqs.weight");
    return f;
}

/* rope_freqs.weight is all that a GGUF keeps of Llama 3's scaling: the rule is found again from its
 * last entry, and must make all the others. */
static json_t *llama3_scaling(struct build *b, double theta)
{
    int n = (int)b->D / 2, same = 1;
    float *f = rope_freqs(b, n);
    if (!f) return NULL;
    double factor = (double)f[n - 1];
    for (int i = 0; i < n; i++) {
        double want = llama3_factor(theta, factor, i, n);
        same = same && fabs((double)f[i] - want) <= 1e-4 * want;
    }
    kk_free(f);
    if (same)
        return json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor", factor,
                         "low_freq_factor", 1.0, "high_freq_factor", 4.0,
                         "original_max_position_embeddings", 8192);
    b->rc =
        kk_fail(b->err, KK_EUNSUPPORTED,
                "tensor 'rope_freqs.weight' does not follow Llama 3's rule (wavelengths of 2048 "
                "to 8192): other scalings are not supported");
    return NULL;
}

static void set_one_rope(struct build *b)
{
    double theta = get_real(b, "rope.freq_base", 1, 1e12, 10000);
    json_t *o = b->rc ? NULL : llama3_scaling(b, theta);
    set(b, "rope_theta", json_real(theta));
    set(b, "rope_scaling", o ? o : scaling(b));
}

/* ---- architectures ------------------------------------------------------------------------ */

/* layer_types from sliding[l]. */
static void set_layer_types(struct build *b, const int64_t sliding[MAX_LAYERS])
{
    json_t *types = json_array();
    for (int64_t l = 0; l < b->L; l++)
        json_array_append_new(types,
                              json_string(sliding[l] ? "sliding_attention" : "full_attention"));
    set(b, "layer_types", types);
}

/* attention.sliding_window_pattern: a truth value for each layer, or every n-th layer is full. */
static void get_pattern(struct build *b, int64_t every, int64_t sliding[MAX_LAYERS])
{
    char k[128];
    const char *key = "attention.sliding_window_pattern";
    memset(sliding, 0, MAX_LAYERS * sizeof *sliding);
    const struct gguf_kv *kv = kk__gguf_find(b->g, full_key(b, k, key));
    if (kv && kv->is_array) {
        get_layers(b, key, 0, 1, -1, sliding);
        return;
    }
    every = get_int(b, key, 1, MAX_LAYERS, every);
    for (int64_t l = 0; l < b->L; l++) sliding[l] = (l + 1) % every != 0;
}

/* Llama's and Qwen's converters keep one kind of layer: anything else is another model. */
static void plain(struct build *b)
{
    int64_t G[MAX_LAYERS], n;
    get_layers(b, "attention.head_count_kv", 1, b->H, b->H, G);
    n = one_of_layers(b, "attention.head_count_kv", G, NULL, 0);
    check_heads(b, n);
    set_int(b, "num_key_value_heads", n);
    set_int(b, "head_dim", b->D);
    set(b, "hidden_act", json_string("silu"));
    set(b, "attention_bias",
        json_boolean(kk__tensor_find(b->mf, "model.layers.0.self_attn.q_proj.bias") != NULL));
    set_one_rope(b);
    n = get_int(b, "expert_count", 0, 4096, 0);
    if (!b->rc && n)
        b->rc = kk_fail(b->err, KK_EUNSUPPORTED,
                        "mixtures of experts (key '%s.expert_count' is %lld) are supported in "
                        "gemma4 alone",
                        b->arch, (long long)n);
    n = get_int(b, "attention.sliding_window", 0, 1 << 30, 0);
    if (!b->rc && n)
        b->rc = kk_fail(b->err, KK_EUNSUPPORTED,
                        "sliding layers (key '%s.attention.sliding_window' is %lld) are supported "
                        "in gemma3 and gemma4 alone",
                        b->arch, (long long)n);
}

/* query_pre_attn_scalar: attention.scale^-2, or of the head dim; the 27B model (62 layers) has the
 * width of a head's share of the hidden size. */
static int64_t attention_scalar(struct build *b)
{
    double scale = get_real(b, "attention.scale", 1e-6, 1e6, 0);
    if (scale > 0) return (int64_t)llround(1 / (scale * scale));
    return b->L == 62 ? b->C / b->H : b->D;
}

static void gemma3(struct build *b)
{
    int64_t G[MAX_LAYERS], sliding[MAX_LAYERS], n;
    get_layers(b, "attention.head_count_kv", 1, b->H, -1, G);
    n = one_of_layers(b, "attention.head_count_kv", G, NULL, 0);
    check_heads(b, n);
    get_pattern(b, 6, sliding);
    set_int(b, "num_key_value_heads", n);
    set_int(b, "head_dim", b->D);
    set_int(b, "sliding_window", get_int(b, "attention.sliding_window", 1, MAX_DIM, -1));
    set_layer_types(b, sliding);
    set_int(b, "query_pre_attn_scalar", attention_scalar(b));
    set(b, "hidden_activation", json_string("gelu_pytorch_tanh"));
    set(b, "final_logit_softcapping", json_real(get_real(b, "final_logit_softcapping", 0, 1e6, 0)));
    set(b, "rope_theta", json_real(get_real(b, "rope.freq_base", 1, 1e12, 1e6)));
    set(b, "rope_local_base_freq", json_real(get_real(b, "rope.freq_base_swa", 1, 1e12, 1e4)));
    set(b, "rope_scaling", scaling(b));
}

/* The share of pairs that turn in full layers: divisors of 1, then such that nothing turns. */
static double gemma4_rotary(struct build *b)
{
    int n = (int)b->D / 2, turning = 0, bad = 0;
    float *f = rope_freqs(b, n);
    if (!f) return 1;
    while (turning < n && f[turning] == 1.0f) turning++;
    for (int i = turning; i < n; i++) bad |= f[i] < 1e20f;
    kk_free(f);
    if (bad)
        b->rc = kk_fail(b->err, KK_EUNSUPPORTED,
                        "tensor 'rope_freqs.weight' must hold 1 for the pairs that turn, then 1e30 "
                        "for those that do not");
    return n ? (double)turning / n : 1;
}

static void gemma4_experts(struct build *b)
{
    int64_t E = get_int(b, "expert_count", 0, 4096, 0);
    set(b, "enable_moe_block", json_boolean(E > 0));
    if (!E) return;
    set_int(b, "num_experts", E);
    set_int(b, "top_k_experts", get_int(b, "expert_used_count", 1, E, -1));
    set_int(b, "moe_intermediate_size", get_int(b, "expert_feed_forward_length", 1, MAX_DIM, -1));
}

static void gemma4_heads(struct build *b, const int64_t sliding[MAX_LAYERS])
{
    int64_t G[MAX_LAYERS], here, full, last = b->L - 1;
    char value[64];
    get_layers(b, "attention.head_count_kv", 1, b->H, -1, G);
    here = one_of_layers(b, "attention.head_count_kv", G, sliding, 1);
    full = one_of_layers(b, "attention.head_count_kv", G, sliding, 0);
    if (here < 0) here = full;
    if (full < 0) full = here;
    check_heads(b, here);
    check_heads(b, full);
    while (last > 0 && sliding[last]) last--;
    snprintf(value, sizeof value, "model.layers.%lld.self_attn.v_proj.weight", (long long)last);
    set_int(b, "num_key_value_heads", here);
    set_int(b, "num_global_key_value_heads", full);
    set(b, "attention_k_eq_v", json_boolean(!kk__tensor_find(b->mf, value)));
    set_int(b, "global_head_dim", b->D);
    here = get_int(b, "attention.key_length_swa", 2, 1024, b->D);
    full = get_int(b, "attention.value_length_swa", 2, 1024, here);
    if (full != here)
        contradiction(b, "attention.value_length_swa", full, "attention.key_length_swa is", here);
    full = get_int(b, "rope.dimension_count_swa", 2, 1024, here);
    if (full != here)
        contradiction(b, "rope.dimension_count_swa", full, "attention.key_length_swa is", here);
    set_int(b, "head_dim", here);
}

static void gemma4(struct build *b)
{
    int64_t sliding[MAX_LAYERS];
    get_pattern(b, 6, sliding);
    gemma4_heads(b, sliding);
    gemma4_experts(b);
    set_int(b, "sliding_window", get_int(b, "attention.sliding_window", 1, MAX_DIM, -1));
    set_layer_types(b, sliding);
    set_int(b, "hidden_size_per_layer_input",
            get_int(b, "embedding_length_per_layer_input", 0, MAX_DIM, 0));
    set_int(b, "num_kv_shared_layers", get_int(b, "attention.shared_kv_layers", 0, MAX_LAYERS, 0));
    set(b, "hidden_activation", json_string("gelu_pytorch_tanh"));
    set(b, "final_logit_softcapping", json_real(get_real(b, "final_logit_softcapping", 0, 1e6, 0)));
    double local = get_real(b, "rope.freq_base_swa", 1, 1e12, 1e4);
    double theta = get_real(b, "rope.freq_base", 1, 1e12, 1e6), part = gemma4_rotary(b);
    set(b, "rope_parameters",
        json_pack("{s:{s:s, s:f}, s:{s:s, s:f, s:f}}", "sliding_attention", "rope_type", "default",
                  "rope_theta", local, "full_attention", "rope_type", "proportional", "rope_theta",
                  theta, "partial_rotary_factor", part));
}

/* ---- values and rows that differ from Hugging Face's --------------------------------------- */

static int ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && !strcmp(s + n - k, tail);
}

/* Llama's converter turns the rows of a head from halves into pairs: remember to turn them back. */
static void mark_turned(struct build *b, struct kk_tensor *t)
{
    if (!strstr(t->name, ".self_attn.q_proj.") && !strstr(t->name, ".self_attn.k_proj.")) return;
    if (b->D % 2 || t->shape[0] % (uint64_t)b->D) {
        if (!b->rc)
            b->rc = kk_fail(b->err, KK_EFORMAT,
                            "tensor '%s' has %llu rows, no multiple of the head dimension %lld",
                            t->name, (unsigned long long)t->shape[0], (long long)b->D);
        return;
    }
    t->turned = t->data;
    t->turned_rows = (uint32_t)b->D;
    t->data = NULL;
}

static void mark_tensors(struct build *b, enum gguf_arch arch)
{
    for (size_t i = 0; !b->rc && i < b->mf->n; i++) {
        struct kk_tensor *t = &b->mf->tensor[i];
        if (arch == GGUF_GEMMA3 && ends_with(t->name, "norm.weight")) t->plus_one = 1;
        if (arch == GGUF_LLAMA) mark_turned(b, t);
    }
}

/* ---- the class ---------------------------------------------------------------------------- */

int kk__gguf_class(const struct kk_gguf *g, const struct gguf_class **out, struct kk_err *err)
{
    static const struct gguf_class known[] = {
        {GGUF_GEMMA3, "gemma3", "Gemma3ForCausalLM", "gemma3_text"},
        {GGUF_GEMMA4, "gemma4", "Gemma4ForCausalLM", "gemma4_text"},
        {GGUF_LLAMA, "llama", "LlamaForCausalLM", "llama"},
        {GGUF_QWEN3, "qwen3", "Qwen3ForCausalLM", "qwen3"},
    };
    char *name = NULL, a[64];
    int rc = kk__gguf_text(g, "general.architecture", &name, err);
    if (rc) return rc;
    if (!name) return kk_fail(err, KK_EFORMAT, "key 'general.architecture' is missing");
    *out = NULL;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, name)) *out = &known[i];
    if (!*out)
        rc = kk_fail(err, KK_EUNSUPPORTED,
                     "architecture '%s' is not supported (known: gemma3, gemma4, llama, qwen3)",
                     kk__printable(a, name));
    kk_free(name);
    return rc;
}

int kk__gguf_config(struct kk_model_file *mf, const struct gguf_class *class, struct kk_err *err)
{
    struct build b = {.mf = mf, .g = mf->gguf, .arch = class->name, .err = err};
    b.o = mf->root = mf->config = json_object();
    mf->architecture = class->architecture;
    mf->model_type = class->model_type;
    set(&b, "architectures", json_pack("[s]", class->architecture));
    set(&b, "model_type", json_string(class->model_type));
    set_common(&b);
    if (b.rc) return b.rc;
    if (class->arch == GGUF_GEMMA3) gemma3(&b);
    if (class->arch == GGUF_GEMMA4) gemma4(&b);
    if (class->arch == GGUF_LLAMA || class->arch == GGUF_QWEN3) plain(&b);
    if (!b.rc) mark_tensors(&b, class->arch);
    return b.rc;
}

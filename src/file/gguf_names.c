/* One table of tensor names: GGUF's and the Hugging Face classes'. */
#include <stdio.h>
#include <string.h>

#include "file/gguf_int.h"

enum {
    GEMMA = GGUF_GEMMA3 | GGUF_GEMMA4,
    PLAIN = GGUF_LLAMA | GGUF_QWEN3,
    ANY = GEMMA | PLAIN,
};

struct name {
    unsigned archs;
    const char *gguf, *hf;
};

static const struct name whole[] = {
    {ANY, "token_embd.weight", "model.embed_tokens.weight"},
    {ANY, "output_norm.weight", "model.norm.weight"},
    {ANY, "output.weight", "lm_head.weight"},
};

/* After "blk.7." and "model.layers.7.". */
static const struct name in_layer[] = {
    {ANY, "attn_norm.weight", "input_layernorm.weight"},
    {ANY, "attn_q.weight", "self_attn.q_proj.weight"},
    {ANY, "attn_k.weight", "self_attn.k_proj.weight"},
    {ANY, "attn_v.weight", "self_attn.v_proj.weight"},
    {ANY, "attn_output.weight", "self_attn.o_proj.weight"},
    {PLAIN, "attn_q.bias", "self_attn.q_proj.bias"},
    {PLAIN, "attn_k.bias", "self_attn.k_proj.bias"},
    {PLAIN, "attn_v.bias", "self_attn.v_proj.bias"},
    {PLAIN, "attn_output.bias", "self_attn.o_proj.bias"},
    {GEMMA | GGUF_QWEN3, "attn_q_norm.weight", "self_attn.q_norm.weight"},
    {GEMMA | GGUF_QWEN3, "attn_k_norm.weight", "self_attn.k_norm.weight"},
    {ANY, "ffn_gate.weight", "mlp.gate_proj.weight"},
    {ANY, "ffn_up.weight", "mlp.up_proj.weight"},
    {ANY, "ffn_down.weight", "mlp.down_proj.weight"},
    {PLAIN, "ffn_norm.weight", "post_attention_layernorm.weight"},
    {GEMMA, "ffn_norm.weight", "pre_feedforward_layernorm.weight"},
    {GEMMA, "post_attention_norm.weight", "post_attention_layernorm.weight"},
    {GEMMA, "post_ffw_norm.weight", "post_feedforward_layernorm.weight"},
    {GGUF_GEMMA4, "layer_output_scale.weight", "layer_scalar"},
    {GGUF_GEMMA4, "pre_ffw_norm_2.weight", "pre_feedforward_layernorm_2.weight"},
    {GGUF_GEMMA4, "post_ffw_norm_1.weight", "post_feedforward_layernorm_1.weight"},
    {GGUF_GEMMA4, "post_ffw_norm_2.weight", "post_feedforward_layernorm_2.weight"},
    {GGUF_GEMMA4, "ffn_gate_inp.weight", "router.proj.weight"},
    {GGUF_GEMMA4, "ffn_gate_inp.scale", "router.scale"},
    {GGUF_GEMMA4, "ffn_down_exps.scale", "router.per_expert_scale"},
    {GGUF_GEMMA4, "ffn_gate_up_exps.weight", "experts.gate_up_proj"},
    {GGUF_GEMMA4, "ffn_down_exps.weight", "experts.down_proj"},
};

static const char *find(const struct name *table, size_t n, enum gguf_arch arch, const char *gguf)
{
    for (size_t i = 0; i < n; i++)
        if (table[i].archs & arch && !strcmp(table[i].gguf, gguf)) return table[i].hf;
    return NULL;
}

/* "blk.7.rest": the length of "7" and where the rest begins; 0 if it is no such name. */
static int layer_of(const char *name, const char **rest)
{
    if (strncmp(name, "blk.", 4)) return 0;
    int digits = (int)strspn(name + 4, "0123456789");
    if (!digits || digits > 9 || name[4 + digits] != '.') return 0;
    if (name[4] == '0' && digits > 1) return 0; /* one spelling only, so that names stay apart */
    *rest = name + 5 + digits;
    return digits;
}

void kk__gguf_rename(enum gguf_arch arch, const char *name, char out[static KK__MAX_NAME + 1])
{
    const char *rest, *hf;
    int digits = layer_of(name, &rest);
    if (digits) {
        hf = find(in_layer, sizeof in_layer / sizeof *in_layer, arch, rest);
        if (hf) snprintf(out, KK__MAX_NAME + 1, "model.layers.%.*s.%s", digits, name + 4, hf);
    } else {
        hf = find(whole, sizeof whole / sizeof *whole, arch, name);
        if (hf) snprintf(out, KK__MAX_NAME + 1, "%s", hf);
    }
    if (!hf) snprintf(out, KK__MAX_NAME + 1, "%s", name);
}

/*
 * gemma3: Gemma 3, text only: norms on both sides of every sublayer and on each head, layers of
 * a sliding window and a RoPE base of their own between global ones, GELU, scaled embeddings.
 */
#include "worker/layers/attention.h"
#include "worker/layers/embedding.h"
#include "worker/layers/mlp.h"
#include "worker/models/architecture.h"

#include <math.h>

#define PLACE(field) offsetof(struct weights, field)
static const struct tensor_row of_model[] = {
    {"token_embd.weight",  DIM_VOCABULARY, DIM_HIDDEN, PLACE(embedding)},
    {"output_norm.weight", DIM_ONE,        DIM_HIDDEN, PLACE(output_norm)},
    {"output.weight",      DIM_VOCABULARY, DIM_HIDDEN, PLACE(output), .optional = true},
    {NULL},
};
#undef PLACE

/* Norm weights in the file already include the "+ 1" of the architecture. */
#define PLACE(field) offsetof(struct layer, field)
static const struct tensor_row of_layer[] = {
    {"attn_norm.weight",           DIM_ONE,      DIM_HIDDEN, PLACE(attention_norm)},
    {"attn_q.weight",              DIM_HEADS,    DIM_HIDDEN, PLACE(qkv)},
    {"attn_k.weight",              DIM_KV_HEADS, DIM_HIDDEN, PLACE(qkv)},
    {"attn_v.weight",              DIM_KV_HEADS, DIM_HIDDEN, PLACE(qkv)},
    {"attn_q_norm.weight",         DIM_ONE,      DIM_HEAD,   PLACE(q_norm)},
    {"attn_k_norm.weight",         DIM_ONE,      DIM_HEAD,   PLACE(k_norm)},
    {"attn_output.weight",         DIM_HIDDEN,   DIM_HEADS,  PLACE(attention_output)},
    {"post_attention_norm.weight", DIM_ONE,      DIM_HIDDEN, PLACE(post_attention_norm)},
    {"ffn_norm.weight",            DIM_ONE,      DIM_HIDDEN, PLACE(ffn_norm)},
    {"ffn_gate.weight",            DIM_FFN,      DIM_HIDDEN, PLACE(gate_up)},
    {"ffn_up.weight",              DIM_FFN,      DIM_HIDDEN, PLACE(gate_up)},
    {"ffn_down.weight",            DIM_HIDDEN,   DIM_FFN,    PLACE(down)},
    {"post_ffw_norm.weight",       DIM_ONE,      DIM_HIDDEN, PLACE(post_ffn_norm)},
    {NULL},
};
#undef PLACE

/* 1 / sqrt(head_dim), but for the 27B model, whose scale is that of its hidden size over its
 * heads (Gemma 3 configurations: query_pre_attn_scalar 168); files tell it by its 62 layers. */
static float attention_scale(const struct model_config *config)
{
    int32_t width = config->num_layers == 62 ? config->hidden_size / config->num_heads
                                             : config->head_dim;

    return 1.0f / sqrtf((float)width);
}

static enum status forward(struct pass *pass)
{
    const struct model_config *config = pass->config;
    float scale = attention_scale(config);
    struct norm_step next;

    TRY(embedding_look_up(pass, sqrtf((float)config->hidden_size)));
    pass_observe(pass, -1);
    next = pass_step_to(pass, 0, NULL);
    TRY(pass_norm(pass, &next));
    for (int32_t i = 0; i < config->num_layers; i++) {
        const struct layer *layer = &pass->weights->layers[i];
        bool global = model_config_is_global(config, i);

        attention_project(pass, layer);
        attention_rotate_and_store(pass, layer, global ? &pass->rope : &pass->rope_local,
                                   &pass->kv[i]);
        if (!attention_narrow(pass, i))
            return OK;
        attention_attend(pass, layer, &pass->kv[i], scale, global ? 0 : config->sliding_window);
        TRY(attention_output(
            pass, layer,
            &(struct norm_step){layer->post_attention_norm, layer->ffn_norm, &layer->gate_up}));

        mlp_gelu(pass, layer);
        next = pass_step_to(pass, i + 1, layer->post_ffn_norm);
        TRY(mlp_down(pass, layer, &next));
        pass_observe(pass, i);
    }
    embedding_logits(pass);
    return OK;
}

const struct architecture gemma3 = {
    .name = "gemma3",
    .tensors = {of_model, of_layer},
    .forward = forward,
};

/*
 * llama: Llama 2 and 3, SmolLM2, Mistral without a window, and whatever else files call "llama".
 */
#include "worker/layers/attention.h"
#include "worker/layers/embedding.h"
#include "worker/layers/mlp.h"
#include "worker/models/architecture.h"

#include <math.h>

#define PLACE(field) offsetof(struct weights, field)
static const struct tensor_row of_model[] = {
    {"token_embd.weight",  DIM_VOCABULARY, DIM_HIDDEN,     PLACE(embedding)},
    {"output_norm.weight", DIM_ONE,        DIM_HIDDEN,     PLACE(output_norm)},
    {"output.weight",      DIM_VOCABULARY, DIM_HIDDEN,     PLACE(output), .optional = true},
    {"rope_freqs.weight",  DIM_ONE,        DIM_ROPE_PAIRS, PLACE(rope_factors), .optional = true},
    {NULL},
};
#undef PLACE

#define PLACE(field) offsetof(struct layer, field)
static const struct tensor_row of_layer[] = {
    {"attn_norm.weight",   DIM_ONE,      DIM_HIDDEN, PLACE(attention_norm)},
    {"attn_q.weight",      DIM_HEADS,    DIM_HIDDEN, PLACE(qkv)},
    {"attn_k.weight",      DIM_KV_HEADS, DIM_HIDDEN, PLACE(qkv)},
    {"attn_v.weight",      DIM_KV_HEADS, DIM_HIDDEN, PLACE(qkv)},
    {"attn_output.weight", DIM_HIDDEN,   DIM_HEADS,  PLACE(attention_output)},
    {"ffn_norm.weight",    DIM_ONE,      DIM_HIDDEN, PLACE(ffn_norm)},
    {"ffn_gate.weight",    DIM_FFN,      DIM_HIDDEN, PLACE(gate_up)},
    {"ffn_up.weight",      DIM_FFN,      DIM_HIDDEN, PLACE(gate_up)},
    {"ffn_down.weight",    DIM_HIDDEN,   DIM_FFN,    PLACE(down)},
    {NULL},
};
#undef PLACE

enum status llama_forward(struct pass *pass)
{
    const struct model_config *config = pass->config;
    float scale = 1.0f / sqrtf((float)config->head_dim);
    struct norm_step next;

    TRY(embedding_look_up(pass, 1.0f));
    pass_observe(pass, -1);
    next = pass_step_to(pass, 0, NULL);
    TRY(pass_norm(pass, &next));
    for (int32_t i = 0; i < config->num_layers; i++) {
        const struct layer *layer = &pass->weights->layers[i];

        attention_project(pass, layer);
        attention_rotate_and_store(pass, layer, &pass->rope, &pass->kv[i]);
        if (!attention_narrow(pass, i))
            return OK;
        attention_attend(pass, layer, &pass->kv[i], scale, 0);
        TRY(attention_output(pass, layer,
                             &(struct norm_step){NULL, layer->ffn_norm, &layer->gate_up}));

        mlp_silu(pass, layer);
        next = pass_step_to(pass, i + 1, NULL);
        TRY(mlp_down(pass, layer, &next));
        pass_observe(pass, i);
    }
    embedding_logits(pass);
    return OK;
}

const struct architecture llama = {
    .name = "llama",
    .tensors = {of_model, of_layer},
    .forward = llama_forward,
};

/*
 * qwen2: Qwen 2 and 2.5 without experts: as llama, with biases of q, k and v.
 */
#include "worker/models/architecture.h"

#define PLACE(field) offsetof(struct weights, field)
static const struct tensor_row of_model[] = {
    {"token_embd.weight",  DIM_VOCABULARY, DIM_HIDDEN, PLACE(embedding)},
    {"output_norm.weight", DIM_ONE,        DIM_HIDDEN, PLACE(output_norm)},
    {"output.weight",      DIM_VOCABULARY, DIM_HIDDEN, PLACE(output), .optional = true},
    {NULL},
};
#undef PLACE

#define PLACE(field) offsetof(struct layer, field)
static const struct tensor_row of_layer[] = {
    {"attn_norm.weight",   DIM_ONE,      DIM_HIDDEN,   PLACE(attention_norm)},
    {"attn_q.weight",      DIM_HEADS,    DIM_HIDDEN,   PLACE(qkv)},
    {"attn_k.weight",      DIM_KV_HEADS, DIM_HIDDEN,   PLACE(qkv)},
    {"attn_v.weight",      DIM_KV_HEADS, DIM_HIDDEN,   PLACE(qkv)},
    {"attn_q.bias",        DIM_ONE,      DIM_HEADS,    PLACE(qkv_bias)},
    {"attn_k.bias",        DIM_ONE,      DIM_KV_HEADS, PLACE(qkv_bias)},
    {"attn_v.bias",        DIM_ONE,      DIM_KV_HEADS, PLACE(qkv_bias)},
    {"attn_output.weight", DIM_HIDDEN,   DIM_HEADS,    PLACE(attention_output)},
    {"ffn_norm.weight",    DIM_ONE,      DIM_HIDDEN,   PLACE(ffn_norm)},
    {"ffn_gate.weight",    DIM_FFN,      DIM_HIDDEN,   PLACE(gate_up)},
    {"ffn_up.weight",      DIM_FFN,      DIM_HIDDEN,   PLACE(gate_up)},
    {"ffn_down.weight",    DIM_HIDDEN,   DIM_FFN,      PLACE(down)},
    {NULL},
};
#undef PLACE

const struct architecture qwen2 = {
    .name = "qwen2",
    .tensors = {of_model, of_layer},
    .forward = llama_forward,
};

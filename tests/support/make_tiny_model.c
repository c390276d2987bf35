/*
 * make_tiny_model PATH [llama|qwen2|qwen3|gemma3 [CHAT_TEMPLATE [MAX_POSITION [HEADS KV_HEADS]]]]: a model file for
 * tests that run whole processes.
 */
#include "tests/support/tiny_model.h"

#include <stdio.h>

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr,
                "usage: %s PATH [llama|qwen2|qwen3|gemma3 [CHAT_TEMPLATE [MAX_POSITION [HEADS KV_HEADS "
                "[SEED]]]]]\n",
                argv[0]);
        return 2;
    }
    tiny_model_write(argv[1], &(struct tiny_model_options){
                                  .architecture = argc > 2 ? argv[2] : NULL,
                                  .chat_template = argc > 3 ? argv[3] : NULL,
                                  .max_position = argc > 4 ? atoi(argv[4]) : 0,
                                  .num_heads = argc > 5 ? atoi(argv[5]) : 0,
                                  .num_kv_heads = argc > 6 ? atoi(argv[6]) : 0,
                                  .seed = argc > 7 ? (uint64_t)atoll(argv[7]) : 0,
                              });
    return 0;
}

/*
 * tokenize: POST /tokenize and /detokenize, in vLLM's shape.
 *
 *   {"prompt", "add_special_tokens": true}  or  {"messages", …as in chat}, "return_token_strs"
 *     -> {"count", "max_model_len", "tokens", "token_strs"}
 *   {"tokens"} -> {"prompt"}
 *
 * Thread: front.
 */
#ifndef ENGINE_SERVER_TOKENIZE_H
#define ENGINE_SERVER_TOKENIZE_H

#include "engine/server/server.h"

void tokenize_post(struct server *server, struct http_exchange *exchange);
void detokenize_post(struct server *server, struct http_exchange *exchange);

#endif

/*
 * split: the pre-tokeniser of a byte-level BPE: cuts a text into the pieces inside which tokens
 * are merged. A row of split.c per tokenizer.ggml.pre.
 *
 * Thread: frozen after new; split_run may run on any thread.
 */
#ifndef ENGINE_TEXT_SPLIT_H
#define ENGINE_TEXT_SPLIT_H

#include "proto/base/memory.h"

struct split;

/* ERR_UNSUPPORTED names the unknown pre-tokeniser and the known ones. "" is "default". */
MUST_USE enum status split_new(const char *pre, struct split **out);
void split_free(struct split *split); /* NULL is fine */
DEFINE_AUTO_FREE(split)

/* A piece that is a token as a whole is that token, whatever the merges say. */
bool split_takes_whole_pieces(const struct split *split);

typedef void split_piece(void *context, const char *text, size_t size);

/* Calls `piece` for each piece of `text`, in order, nothing left out; text is valid UTF-8.
 * ERR_INTERNAL: PCRE2 gave up (no text is known to make it do so). */
MUST_USE enum status split_run(const struct split *split, const char *text, size_t size,
                               split_piece *piece, void *context);

#endif

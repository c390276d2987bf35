/*
 * words: what others said, in a sentence of ours.
 *
 * A library's words may hold what the client sent, so nothing of them is trusted: control
 * characters become spaces, what is no UTF-8 is replaced, and what is longer than a sentence is
 * cut.
 *
 * Thread: any.
 */
#ifndef ENGINE_GRAMMAR_WORDS_H
#define ENGINE_GRAMMAR_WORDS_H

#include "proto/base/memory.h"

enum { MAX_WORDS_BYTES = 400 };

/* fail() with the words. */
enum status fail_in_words(enum status status, const char *words, size_t size);

/* So that the compiler sees that it fails, as of fail(). */
#define fail_in_words(code, words, size)                                                           \
    ({                                                                                             \
        enum status words_code_ = (code);                                                          \
        (fail_in_words)(words_code_, (words), (size));                                             \
        words_code_;                                                                               \
    })

enum { SHORT_NAME_BYTES = 64 };
/* The first part of a client's name, which is UTF-8, as it may stand in a sentence of ours. */
const char *short_name(const char *name, char out[static SHORT_NAME_BYTES]);

#endif

/*
 * vocabulary_check: do other weights go with the words of those that run?
 *
 * The engine makes tokens of texts and texts of tokens by the vocabulary that it began with, whatever weights its
 * ranks load later. So another model must have the same one: all of it that says which ids a text becomes, and
 * which end an answer. Chat templates may differ: that of the start stays in use. Ranks know no words.
 *
 * Thread: one, core.
 */
#ifndef ENGINE_CORE_VOCABULARY_CHECK_H
#define ENGINE_CORE_VOCABULARY_CHECK_H

#include "proto/model/model_file.h"

/* ERR_MISMATCH: the first thing that differs, with both values. */
MUST_USE enum status vocabulary_check_same(const struct vocabulary *running, const struct vocabulary *other);

struct vocabulary_check;

/* Opens the model at `path` and compares, on a thread of its own: a large vocabulary takes longer to read than many
 * steps. `running` is borrowed until the end. ERR_IO: there is no thread for it. */
MUST_USE enum status vocabulary_check_start(const struct vocabulary *running, const char *path,
                                            struct vocabulary_check **out);
bool vocabulary_check_is_over(const struct vocabulary_check *check);
/* Waits for its end and frees it. As vocabulary_check_same, with the path before it, or as model_file_open. */
MUST_USE enum status vocabulary_check_end(struct vocabulary_check *check);

#endif

/*
 * reader: what model_file.c and the reader of each format share; for nobody else.
 *
 * model_file.c opens, maps and frees; a reader fills the rest of the struct from the map,
 * and may leave it half filled when it fails, since the caller then frees it.
 *
 * Thread: the opener's.
 */
#ifndef PROTO_MODEL_READER_H
#define PROTO_MODEL_READER_H

#include "proto/base/file_map.h"
#include "proto/model/model_file.h"

struct model_file {
    struct file_map map;    /* of the file that was opened; of a folder: not open */
    struct file_map *parts; /* [num_parts] a folder's files of weights */
    int32_t num_parts;
    struct model_config config;
    struct vocabulary vocabulary;
    struct text_view generation_config;
    struct tensor *tensors; /* [num_tensors] in the file's order */
    int32_t num_tensors;
    const struct tensor **by_name; /* [num_tensors] sorted, by model_file_index */
    struct arena arena;            /* holds what the map does not: names, views, the arrays above */
    bool is_simulated;
    bool without_words; /* of the vocabulary num_tokens alone is wanted */
    struct model_file *words; /* whose vocabulary this file has taken; NULL: it has its own */
};

/* Fills in what the map has. Sentences lack the path, which model_file_open_by puts in front. */
typedef enum status model_reader(struct model_file *file, const void *user);
/* model_file_open_parts for one kind of file. */
MUST_USE enum status model_file_open_by(const char *path, enum model_parts parts, model_reader *read,
                                        const void *user, struct model_file **out);

/* The same where the reader opens what it wants by itself: nothing is mapped. */
MUST_USE enum status model_file_make_by(const char *path, enum model_parts parts, model_reader *read,
                                        const void *user, struct model_file **out);

/* Sorts the names, which no two tensors may share. A reader that looks for its tensors calls it when it has them
 * all; for others it is done. */
MUST_USE enum status model_file_index(struct model_file *file);

MUST_USE enum status gguf_read(struct model_file *file);
/* Puts a mapping of zeros in the place of the file's, and marks it as simulated. */
MUST_USE enum status sim_read(struct model_file *file);

#endif

/*
 * float_copy: a GGUF file with every tensor dequantised to F32, so that a model's graph can be
 * compared with a float32 reference without the noise of 8-bit activations.
 */
#ifndef TESTS_SUPPORT_FLOAT_COPY_H
#define TESTS_SUPPORT_FLOAT_COPY_H

#include "proto/model/model_file.h"

/* Writes the copy of `path`, open as `file`; aborts when the disk is full. */
void float_copy_write(const char *path, const struct model_file *file, const char *copy_path);

#endif

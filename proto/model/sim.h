/*
 * sim: what a simulated device is like, and the file that says so.
 *
 * A device that computes nothing and only takes time, with a model that has a shape and no weights:
 * so an engine with 8 ranks and a model of 70 billion weights runs on a laptop, at the pace of the
 * real thing, and everything but the kernels is real. kernels/sim/README.md has the model of time.
 *
 * The file is JSON: {"device": {...}, "model": {...}, "tp": N}; unknown keys are refused. For
 * model_file_open it is a model like any other: architecture "llama", tensors that are all zeros
 * and take no memory, and a vocabulary of bytes.
 *
 * Thread: any.
 */
#ifndef PROTO_MODEL_SIM_H
#define PROTO_MODEL_SIM_H

#include "proto/base/status.h"

#include <stdint.h>

/* A bandwidth or a peak of 0 stands for one without limit. */
struct sim_device {
    double memory_bytes;       /* of the device */
    double memory_bytes_per_s; /* that kernels reach, not the data sheet's */
    double flops_per_s;        /* likewise */
    double kernel_overhead_ns; /* each kernel takes this, and its work */
    double link_latency_ns;    /* of an all-reduce without data */
    double link_bytes_per_s;   /* of one device, in one direction */
};

/* The device and the number of ranks of a file. ERR_NOT_FOUND, ERR_IO, ERR_UNSUPPORTED (no regular
 * file), ERR_CORRUPT: a sentence that names the path and the key. */
MUST_USE enum status sim_file_read(const char *path, struct sim_device *device_out,
                                   int32_t *tp_out);

#endif

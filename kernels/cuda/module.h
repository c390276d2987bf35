/*
 * cuda/module: what tandem_cuda.so gives the program that opens it: this table, by the name TANDEM_CUDA. It knows
 * CUDA and the shapes of kernels.h, and calls nothing of tandem's, so the program needs no CUDA and the module no
 * program.
 *
 * A `const char *` that is returned is NULL, or says what went wrong, and is valid until the next call.
 *
 * Thread: one device's calls from one thread; `open` from any.
 */
#ifndef KERNELS_CUDA_MODULE_H
#define KERNELS_CUDA_MODULE_H

#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TANDEM_CUDA "tandem_cuda"

struct cuda_state;    /* the module's */
struct cuda_exchange; /* likewise */
struct cuda_nccl;     /* likewise */

enum {
    CUDA_HANDLE_BYTES = 64, /* by which another process reaches memory */
    CUDA_UUID_BYTES = 16,
    CUDA_NCCL_ID_BYTES = 128,
};

struct cuda_device {
    struct device device;
    struct cuda_state *state;
    struct device *host; /* that packs weights */
};

struct cuda_properties {
    char name[64];
    int32_t major, minor;   /* compute capability */
    int32_t runtime_version; /* 1000 * major + 10 * minor */
    int32_t driver_version;
    int64_t memory_bytes;
    int32_t num_devices; /* that this process may see */
    char uuid[CUDA_UUID_BYTES]; /* no other GPU has */
};

struct cuda_nccl_ranks {
    int32_t world, rank;
    int64_t sum_max;     /* doubles of a sum */
    int64_t columns_max; /* floats of the largest rank's share of columns */
};

/*
 * Sums among ranks of any hosts, by NCCL. One rank makes an id, by which all begin. What is begun goes on when the
 * call returns: poll says when it has come to its end, and nothing is to be launched or begun before. The part of
 * the next sum, sum_max doubles at most, goes to buffer; what comes after `sum` reads the sum of all ranks' at
 * *out, until the next one.
 *
 * What is begun while the device records is recorded: by all ranks alike, and replayed by all alike. An abort, or
 * to close, waits until recordings are freed.
 *
 * Thread: any, one at a time. None but `waits` and `is_doubtful` while one aborts.
 */
struct cuda_nccl_table {
    /* Opens the library, once; path NULL: libnccl.so.2. version_out: 10000 * major + 100 * minor + patch. */
    const char *(*load)(const char *path, int32_t *version_out);
    const char *(*make_id)(void *id_out); /* [CUDA_NCCL_ID_BYTES] */
    /* *out is to be closed, where there is one, whatever is returned. */
    const char *(*begin)(struct cuda_state *state, const struct cuda_nccl_ranks *ranks, const void *id,
                         struct cuda_nccl **out);
    const char *(*poll)(struct cuda_nccl *nccl, bool *is_over_out);
    double *(*buffer)(struct cuda_nccl *nccl);
    const char *(*sum)(struct cuda_nccl *nccl, int64_t count, const double **out);
    /* x: the sum of all ranks' x, of which all but one are +0: its bits. */
    const char *(*add_disjoint)(struct cuda_nccl *nccl, float *x, int64_t count);
    /* One after the other, with polls between them: columns are put together, ranks tell each other that they had not
     * aborted before, and where one does not, is_doubtful from there on: columns may be wrong without its peers'
     * knowing of an abort. The last begins nothing. */
    const char *(*gather_columns)(struct cuda_nccl *nccl, const struct comm_columns *columns);
    const char *(*vouch_for_columns)(struct cuda_nccl *nccl, const struct comm_columns *columns);
    void (*check_columns)(struct cuda_nccl *nccl);
    bool (*is_doubtful)(const struct cuda_nccl *nccl); /* as far as the device has come */
    bool (*is_idle)(const struct cuda_nccl *nccl); /* the stream has nothing to do */
    bool (*waits)(const struct cuda_nccl *nccl);   /* it has come to an exchange, and not to its end */
    void (*abort)(struct cuda_nccl *nccl); /* once: the stream waits for nobody; takes its time */
    void (*close)(struct cuda_nccl *nccl); /* aborts, if that has not been */
};

/* What a thread does, for a profiler that is attached. Ranges nest; end is that of the last. Thread: any. */
struct cuda_range_table {
    void (*begin)(const char *name, int64_t step);
    void (*end)(void);
};

/*
 * Matmuls of 16-bit weights, and of codes of 8 bits, by cuBLASLt, of a device that `use` was called for: a row's
 * bits may depend on the rows beside it then.
 *
 * Thread: load, any, one at a time; else the device's.
 */
struct cuda_cublaslt_table {
    /* Opens the library, once; path NULL: libcublasLt.so of the CUDA that the module was built with, as the system
     * finds it. version_out: 10000 * major + 100 * minor + patch. */
    const char *(*load)(const char *path, int32_t *version_out);
    /* Matmuls of so many rows and more are its from here on. Takes memory, which cuBLASLt takes none beside. */
    const char *(*use)(struct cuda_state *state, int32_t from_rows);
    /* Does it multiply by codes there, with a scale for each column, or for each block (fp8_layout.h)? */
    bool (*has_fp8)(const struct cuda_state *state, bool has_blocks);
    /* What whoever runs this is to hear, once; NULL: nothing. */
    const char *(*news)(struct cuda_state *state);
};

struct cuda_module {
    size_t table_bytes;    /* another build's module is told by it */
    struct kernels kernels; /* without those that size and pack weights, which is the host's work */

    /* ordinal: of the GPUs that this process may see, counted round where there are fewer. failure_out:
     * ERR_MISSING, no driver or no GPU; ERR_UNSUPPORTED, none that this module has code for; ERR_NO_MEMORY. */
    const char *(*open)(int32_t ordinal, struct cuda_state **out, struct cuda_properties *properties_out,
                        enum status *failure_out);
    void (*close)(struct cuda_state *state);
    const char *(*alloc)(struct cuda_state *state, int64_t bytes, void **out); /* zeroed */
    void (*free)(struct cuda_state *state, void *p);
    const char *(*alloc_host)(struct cuda_state *state, int64_t bytes, void **out); /* page-locked, zeroed;
                                                                                               * kernels reach it */
    void (*free_host)(struct cuda_state *state, void *p);
    void (*memory)(struct cuda_state *state, int64_t *free_out, int64_t *total_out); /* bytes; 0: a failure */
    /* Host to device, in order of execution. push: from page-locked memory, which stays as it is until the device
     * has got there; write: from any, which is free when it returns. */
    const char *(*push)(struct cuda_state *state, void *device, const void *host, int64_t bytes);
    const char *(*write)(struct cuda_state *state, void *device, const void *host, int64_t bytes);
    /* Device to any memory of the host, best page-locked; returns when it is there, and everything before has run.
     * What kernels met comes out here. */
    const char *(*read)(struct cuda_state *state, void *host, const void *device, int64_t bytes);
    /* What kernels met so far. */
    const char *(*check)(struct cuda_state *state);
    /* Launches are recorded, until end_record; one that fails is over. */
    const char *(*record)(struct cuda_state *state);
    const char *(*end_record)(struct cuda_state *state, struct device_recording **out);
    const char *(*replay)(struct cuda_state *state, struct device_recording *recording);
    void (*recording_free)(struct cuda_state *state, struct device_recording *recording);
    /* 1e9 bytes a second that a kernel reads from its memory. */
    const char *(*limit_read)(struct cuda_state *state, double *gb_s_out);
    /*
     * The time when the device gets here will be put at *ns, page-locked: nanoseconds of its own clock, never 0;
     * time_of_mark makes CLOCK_MONOTONIC of them. While the host waits for a mark, keep_time sees to it that it is
     * known how far apart the two clocks are. Both take 20 us now and then.
     */
    void (*mark)(struct cuda_state *state, int64_t *ns);
    int64_t (*time_of_mark)(struct cuda_state *state, int64_t ns);
    void (*keep_time)(struct cuda_state *state);

    /*
     * Sums among ranks of one host. Each opens its own and tells all its handle, and connects to all when it has theirs,
     * handles: [world]. The part of the next sum, sum_max doubles at most, goes to exchange_buffer; exchange_sum lets
     * what comes after it read all ranks' parts, [world]. Parts are at two places in turn: exchange_align goes to
     * the first, so that what is recorded from there finds its places again. abort, from any thread: nothing waits
     * any more.
     */
    const char *(*exchange_open)(struct cuda_state *state, int32_t world, int32_t rank, int64_t sum_max,
                                 void *handle_out, struct cuda_exchange **out);
    const char *(*exchange_connect)(struct cuda_exchange *exchange, const void *handles);
    void (*exchange_abort)(struct cuda_exchange *exchange);
    int32_t (*exchange_waits_for)(const struct cuda_exchange *exchange); /* the rank; -1: none, or not for long. Any thread */
    double *(*exchange_buffer)(struct cuda_exchange *exchange);
    const double *const *(*exchange_sum)(struct cuda_exchange *exchange);
    void (*exchange_align)(struct cuda_exchange *exchange);
    const char *(*exchange_gather)(struct cuda_exchange *exchange, const struct comm_columns *columns);
    /* x: the sum of all ranks' x, of which one alone is not zero. */
    const char *(*exchange_add_disjoint)(struct cuda_exchange *exchange, float *x, int64_t count);
    void (*exchange_close)(struct cuda_exchange *exchange); /* NULL is fine */

    const struct cuda_nccl_table *nccl;     /* all NULL: who built the module had no nccl.h */
    const struct cuda_range_table *ranges;  /* all NULL: nor nvtx3/nvToolsExt.h */
    const struct cuda_cublaslt_table *cublaslt; /* all NULL: nor cublasLt.h */
};

#ifdef __cplusplus
}
#endif
#endif

/*
 * bench: parts of the engine, measured alone. `tandem bench NAME` runs a row.
 *
 * A bench has options, figures that it promises, and a function that fills them in. Figures are
 * medians unless their name says otherwise.
 */
#ifndef ENGINE_BENCH_BENCH_H
#define ENGINE_BENCH_BENCH_H

#include "proto/config/option.h"

enum { BENCH_MAX_FIGURES = 32, BENCH_MAX_RUNNING = 16384, BENCH_MAX_RANKS = 64 };

struct figure {
    const char *name; /* the JSON key; ends in its unit */
    int decimals;
    const char *help;
    bool must_be_zero; /* else the exit status is 1 */
    const char *const *words; /* NULL, or the figure is the index of a word */
};

struct bench {
    const char *name;
    const char *help; /* NULL: a part of another bench, not for people */
    const struct option *options;
    size_t num_options;
    size_t settings_bytes; /* of the struct that the options fill */
    const struct figure *figures;
    int num_figures;
    /* figures_out: [num_figures], in the order of `figures` */
    enum status (*run)(const void *settings, double *figures_out);
    /* Or, in its place, prints lines of figures itself, as many as there are: JSON objects, or text. */
    enum status (*report)(const void *settings, bool json);
};

extern const struct bench bench_admit, bench_kernels, bench_load, bench_model, bench_null_worker,
    bench_overlap, bench_rpc, bench_simulate, bench_step, bench_wire;

#endif

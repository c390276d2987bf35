/*
 * bench kernels: each kernel beside what this machine allows, a line each. kernels/bench/roofline
 * measures; this prints.
 */
#include "engine/bench/bench.h"
#include "kernels/bench/roofline.h"
#include "proto/base/cpus.h"
#include "proto/config/config.h"

#include <stdio.h>

struct kernels_settings {
    char *isa, *kernel;
    int32_t threads, run_ms;
};

/* ---- JSON ------------------------------------------------------------------------------------ */

static void print_limits_json(void *user, const struct roofline_limits *limits)
{
    const struct {
        const char *name, *unit;
        double value;
    } rows[] = {
        {"read", "gb_s", limits->read_gb_s},
        {"int8", "gop_s", limits->gop_s.int8},
        {"float", "gop_s", limits->gop_s.floats},
        {"bfloat16", "gop_s", limits->gop_s.bfloat16},
        {"barrier", "us", limits->barrier_us},
    };

    (void)user;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        printf("{\"limit\": \"%s\", \"isa\": \"%s\", \"threads\": %d, \"%s\": %.2f}\n", rows[i].name,
               limits->isa, limits->threads, rows[i].unit, rows[i].value);
    fflush(stdout);
}

static void print_figure_json(void *user, const struct roofline_figure *figure)
{
    (void)user;
    printf("{\"kernel\": \"%s\", \"shape\": \"%s\", \"isa\": \"%s\", \"threads\": %d, \"rows\": %d",
           figure->kernel, figure->shape, figure->isa, figure->threads, figure->rows);
    if (figure->type)
        printf(", \"type\": \"%s\"", figure->type);
    if (figure->n)
        printf(", \"n\": %d, \"k\": %d", figure->n, figure->k);
    if (figure->requests)
        printf(", \"requests\": %d, \"length\": %d", figure->requests, figure->length);
    printf(", \"us\": %.3f, \"gb_s\": %.2f, \"gop_s\": %.2f, \"share\": %.4f, \"bound\": \"%s\"}\n",
           figure->us, figure->gb_s, figure->gop_s, figure->share, figure->bound);
    fflush(stdout);
}

/* ---- for people ------------------------------------------------------------------------------ */

static void print_limits(void *user, const struct roofline_limits *limits)
{
    (void)user;
    printf("%s, %d thread%s: reads %.1f GB/s, int8 %.0f GOP/s, float %.0f GOP/s, bfloat16 %.0f GOP/s, an empty "
           "operation %.2f us\n",
           limits->isa, limits->threads, limits->threads > 1 ? "s" : "", limits->read_gb_s,
           limits->gop_s.int8, limits->gop_s.floats, limits->gop_s.bfloat16, limits->barrier_us);
}

static void print_figure(void *user, const struct roofline_figure *figure)
{
    char what[64] = "";

    (void)user;
    if (figure->n)
        snprintf(what, sizeof what, "%s %d x %d", figure->type, figure->n, figure->k);
    if (figure->requests)
        snprintf(what, sizeof what, "%s %d of %d tokens", figure->type, figure->requests, figure->length);
    printf("%-19s %-24s %-25s %2d threads %4d rows %10.2f us %7.1f GB/s %7.0f GOP/s %4.0f %% of %s\n",
           figure->kernel, figure->shape, what, figure->threads, figure->rows, figure->us, figure->gb_s,
           figure->gop_s, 100 * figure->share, figure->bound);
    fflush(stdout);
}

/* ---- the bench ------------------------------------------------------------------------------- */

static enum status report(const void *user, bool json)
{
    const struct kernels_settings *settings = user;
    AUTO_FREE(cpus) struct cpus *cpus = NULL;

    TRY(cpus_open(NULL, &cpus));
    return roofline_measure(&(struct roofline_options){
        .isa = settings->isa,
        .num_threads = settings->threads ? settings->threads : cpus_num_cores(cpus),
        .kernel = settings->kernel,
        .run_ms = settings->run_ms,
        .on_limits = json ? print_limits_json : print_limits,
        .on_figure = json ? print_figure_json : print_figure,
    });
}

#define ROW(member, ...) OPTION(struct kernels_settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(isa, OPTION_WORD, NULL, "instruction set; the best there is", .words = ISA_WORDS),
    ROW(threads, OPTION_I32, "0", "measured beside one thread; 0: the cores that we may use", .most = 1024),
    ROW(kernel, OPTION_TEXT, NULL, "this one alone", .value = "NAME"),
    ROW(run_ms, OPTION_I32, "60", "of each figure, at least", .least = 1, .most = 60000),
};
#undef ROW

static const struct figure figures[] = {
    {"limit", .help = "first, for one thread and for all: reading memory, gb_s; int8 dot products and "
                      "multiply-adds of float and of bfloat16 in registers, gop_s; threads that begin and end together, us"},
    {"us", .help = "of a call: the best of several; of one thread its CPU time"},
    {"gb_s", .help = "of its arrays, each once"},
    {"gop_s", .help = "a multiplication and its addition are two"},
    {"share", .help = "of the limit that binds; arrays that caches hold may beat that of memory"},
    {"bound", .help = "that limit: memory, int8, float or bfloat16"},
};

const struct bench bench_kernels = {
    .name = "kernels",
    .help = "each kernel on the shapes of two models, beside what this machine allows",
    .options = options,
    .num_options = COUNT_OF(options),
    .settings_bytes = sizeof(struct kernels_settings),
    .figures = figures,
    .num_figures = COUNT_OF(figures),
    .report = report,
};

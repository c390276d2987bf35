#include "engine/bench/bench.h"
#include "engine/cmd/cmd.h"
#include "engine/cmd/exit_code.h"

#include <stdio.h>
#include <string.h>

static const struct bench *const benches[] = {
    &bench_step,    &bench_admit, &bench_wire,     &bench_rpc,
    &bench_overlap, &bench_load,  &bench_model,    &bench_kernels,
    &bench_simulate, &bench_null_worker,
};

struct print_settings {
    bool json;
};

static const struct option print_options[] = {
    OPTION(struct print_settings, json, OPTION_BOOL, NULL, "the figures as JSON"),
};

/* ---- help ------------------------------------------------------------------------------------ */

static int print_help(FILE *out)
{
    fputs("usage: tandem bench NAME [OPTION]...\n\n"
          "Measures a part of the engine on this machine; `model` and `load` the whole of it.\n\n",
          out);
    for (size_t i = 0; i < COUNT_OF(benches); i++)
        if (benches[i]->help)
            fprintf(out, "  %-8s %s\n", benches[i]->name, benches[i]->help);
    fputs("\nTimes are medians, unless a name says otherwise.\n"
          "'tandem bench NAME --help' tells a bench's options and figures.\n",
          out);
    return 0;
}

static int print_bench_help(const struct bench *bench, const struct option_set *sets)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    options_help(sets, 2, &text);
    printf("usage: tandem bench %s [OPTION]...\n\nMeasures %s.\n\n%s\n", bench->name,
           bench->help ? bench->help : "nothing: a part of another bench", bytes_text(&text));
    for (int i = 0; i < bench->num_figures; i++)
        printf("  %-32s %s\n", bench->figures[i].name, bench->figures[i].help);
    return 0;
}

static bool asks_for_help(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    return false;
}

/* ---- one bench ------------------------------------------------------------------------------- */

static char *figure_text(const struct figure *figure, double value)
{
    return figure->words ? mem_strdup(figure->words[(int)value])
                         : mem_printf("%.*f", figure->decimals, value);
}

static void print_json(const struct bench *bench, const double *values)
{
    for (int i = 0; i < bench->num_figures; i++) {
        const struct figure *figure = &bench->figures[i];
        AUTO_MEM char *text = figure_text(figure, values[i]);
        const char *quote = figure->words ? "\"" : "";

        printf("%s\"%s\": %s%s%s", i ? ", " : "{", figure->name, quote, text, quote);
    }
    puts("}");
}

static void print_figures(const struct bench *bench, const double *values)
{
    int width = 12;

    for (int i = 0; i < bench->num_figures; i++)
        width = MAX(width, (int)strlen(bench->figures[i].name));
    for (int i = 0; i < bench->num_figures; i++) {
        AUTO_MEM char *text = figure_text(&bench->figures[i], values[i]);

        printf("%-*s %10s  %s\n", width, bench->figures[i].name, text, bench->figures[i].help);
    }
}

static enum status run_bench(const struct bench *bench, const struct option_set *sets, int argc,
                             char **argv)
{
    const struct print_settings *print = sets[1].target;
    double values[BENCH_MAX_FIGURES];

    TRY(options_parse(sets, 2, argc, argv, NULL, NULL));
    if (bench->report)
        return bench->report(sets[0].target, print->json);
    TRY(bench->run(sets[0].target, values));
    if (bench->num_figures > 0)
        (print->json ? print_json : print_figures)(bench, values);
    for (int i = 0; i < bench->num_figures; i++)
        if (bench->figures[i].must_be_zero && values[i] != 0)
            return fail(ERR_MISMATCH, "%.0f %s", values[i], bench->figures[i].name);
    return OK;
}

/* argv[0] is the bench's name. */
static int bench_main(const struct bench *bench, int argc, char **argv)
{
    AUTO_MEM void *settings = mem_alloc(bench->settings_bytes);
    struct print_settings print = {0};
    struct option_set sets[] = {
        {bench->options, bench->num_options, settings},
        {print_options, COUNT_OF(print_options), &print},
    };
    enum status status;

    if (asks_for_help(argc, argv))
        return print_bench_help(bench, sets);
    options_init(&sets[0]);
    status = run_bench(bench, sets, argc, argv);
    if (status != OK)
        fprintf(stderr, "tandem bench %s: %s\n", bench->name, fail_text());
    options_close(&sets[0]);
    return exit_code_of(status);
}

static int refuse_unknown(const char *name)
{
    const char *names[COUNT_OF(benches) + 1] = {NULL}, *nearest;

    for (size_t i = 0, n = 0; i < COUNT_OF(benches); i++)
        if (benches[i]->help)
            names[n++] = benches[i]->name;
    nearest = nearest_word(name, names);
    fprintf(stderr, "tandem bench: '%.64s' is no bench", name);
    if (nearest)
        fprintf(stderr, "; did you mean '%s'?", nearest);
    fputs("\n'tandem bench --help' lists them.\n", stderr);
    return 2;
}

int cmd_bench(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return print_help(stdout);
    for (size_t i = 0; i < COUNT_OF(benches); i++)
        if (strcmp(benches[i]->name, argv[1]) == 0)
            return bench_main(benches[i], argc - 1, argv + 1);
    return refuse_unknown(argv[1]);
}

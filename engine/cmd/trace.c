#include "engine/cmd/cmd.h"
#include "engine/cmd/exit_code.h"
#include "engine/trace/report.h"
#include "engine/trace/svg.h"
#include "proto/config/option.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char usage[] = "usage: tandem trace FILE [OPTION]...\n\n"
                            "Says what a trace file (generate or serve --trace FILE) tells: how "
                            "busy the devices were, how long they\n"
                            "waited between steps and for what, and how much of the engine's work "
                            "ran while they computed.\n"
                            "The file itself opens in ui.perfetto.dev.\n\n";

struct trace_settings {
    char *svg;
    int32_t steps, ranks;
    int64_t from_step;
    bool json;
};

#define ROW(member, ...) OPTION(struct trace_settings, member, __VA_ARGS__)
static const struct option rows[] = {
    ROW(svg, OPTION_TEXT, NULL, "draw some steps into this file", .value = "FILE"),
    ROW(from_step, OPTION_I64, "-1", "the first that is drawn; -1: from the middle of the trace",
        .least = -1, .most = 9e15),
    ROW(steps, OPTION_I32, "4", "that are drawn", .least = 1, .most = SVG_MAX_STEPS),
    ROW(ranks, OPTION_I32, "2", "that are drawn", .least = 1, .most = SVG_MAX_LANES),
    ROW(json, OPTION_BOOL, "false", "the report as one line of JSON"),
};
#undef ROW

static enum status write_file(const char *path, const struct bytes *text)
{
    FILE *f = fopen(path, "we");
    bool is_written;

    if (!f)
        return fail(ERR_IO, "%s: %m", path);
    is_written = fwrite(text->data, 1, text->size, f) == text->size;
    if (fclose(f) != 0 || !is_written)
        return fail(ERR_IO, "%s: %m", path);
    return OK;
}

static enum status draw(const struct timeline *timeline, const struct trace_settings *settings)
{
    AUTO_CLOSE(bytes) struct bytes picture = {0};

    TRY(svg_draw(timeline,
                 &(struct svg_options){.from_step = settings->from_step,
                                       .num_steps = settings->steps,
                                       .num_ranks = settings->ranks},
                 &picture));
    return write_file(settings->svg, &picture);
}

static void tell(const struct timeline *timeline, bool as_json)
{
    AUTO_CLOSE(report) struct report report = {0};
    AUTO_CLOSE(bytes) struct bytes text = {0};

    report_make(timeline, &report);
    if (as_json) {
        json_t *json = report_to_json(&report);

        json_dumpf(json, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
        putchar('\n');
        json_decref(json);
        return;
    }
    report_print(&report, &text);
    fwrite(text.data, 1, text.size, stdout);
}

static enum status run(const char *path, const struct trace_settings *settings)
{
    AUTO_CLOSE(timeline) struct timeline timeline = {0};

    TRY(timeline_read(path, &timeline));
    tell(&timeline, settings->json);
    return settings->svg ? draw(&timeline, settings) : OK;
}

static int print_help(void)
{
    AUTO_CLOSE(bytes) struct bytes help = {0};
    struct option_set set = {rows, COUNT_OF(rows), NULL};

    options_help(&set, 1, &help);
    fputs(usage, stdout);
    fwrite(help.data, 1, help.size, stdout);
    return 0;
}

int cmd_trace(int argc, char **argv)
{
    struct trace_settings settings = {0};
    struct option_set set = {rows, COUNT_OF(rows), &settings};
    AUTO_MEM const char **words = mem_new_array(const char *, (size_t)argc);
    enum status status;
    int num_words = 0;

    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return print_help();
    options_init(&set);
    status = options_parse(&set, 1, argc, argv, words, &num_words);
    if (status == OK && num_words != 1)
        status = fail(ERR_INVALID, "one FILE is wanted, %d are given", num_words);
    if (status == OK)
        status = run(words[0], &settings);
    if (status != OK)
        fprintf(stderr, "tandem trace: %s\n", fail_text());
    options_close(&set);
    return exit_code_of(status);
}

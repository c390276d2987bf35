#include "engine/cmd/cmd.h"
#include "engine/core/step_replay.h"
#include "proto/base/build_id.h"
#include "proto/base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char usage[] =
    "usage: tandem replay FILE [OPTION]...\n\n"
    "Runs a step that failed again, on fresh ranks. FILE is what an engine wrote when it failed; "
    "its log\n"
    "names it. The ranks are brought to where they were, then the steps that were in flight run as "
    "they\n"
    "were.\n\n"
    "Exit status: 0 it failed the same way, 1 it did not, 2 it can't be run.\n\n";

struct replay_settings {
    char *model, *executor;
    bool json;
};

#define ROW(member, ...) OPTION(struct replay_settings, member, __VA_ARGS__)
static const struct option rows[] = {
    ROW(model, OPTION_TEXT, NULL, "where the model is now, if not where it was", .value = "FILE"),
    ROW(executor, OPTION_WORD, NULL, "another one than the engine's", .words = "uniproc multiproc"),
    ROW(json, OPTION_BOOL, "false", "the result as one line of JSON"),
};
#undef ROW

static const char *const outcome_names[] = {
    [REPLAY_SAME] = "the same failure",
    [REPLAY_OTHER] = "another failure",
    [REPLAY_NO_FAILURE] = "no failure",
};

/* ---- telling --------------------------------------------------------------------------------- */

static void show_step(void *user, int64_t step, const struct scheduler_output *plan,
                      bool is_warm_up)
{
    (void)user;
    fprintf(stderr, "step %" PRId64 ": %d requests, %d tokens%s\n", step, plan->num_rows,
            plan->total_num_scheduled_tokens,
            is_warm_up ? ", to bring the ranks to where they were" : "");
}

static void show_dump(const struct step_dump *dump)
{
    fprintf(stderr, "step %" PRId64 " failed in %s (%s): %s\n", dump->failed_step, dump->verb,
            status_name(dump->status), dump->cause);
    if (strcmp(dump->build_id, build_id_text()) != 0)
        fprintf(stderr, "it was another build, %.12s; this one is %.12s\n", dump->build_id,
                build_id_text());
}

static void show_result(const struct step_dump *dump, const struct step_replay_result *result,
                        bool as_json)
{
    if (as_json) {
        json_t *json = json_pack(
            "{s:b, s:s, s:I, s:s, s:s, s:s}", "same", result->outcome == REPLAY_SAME, "outcome",
            outcome_names[result->outcome], "step", (json_int_t)dump->failed_step, "status",
            status_name(result->status), "cause", result->cause, "cause_then", dump->cause);

        json_dumpf(json, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(json);
        return;
    }
    printf("%s%s%s\n", outcome_names[result->outcome], result->status == OK ? "" : ": ",
           result->cause);
}

/* ---- running --------------------------------------------------------------------------------- */

/* The dump's settings, but for what belongs to this run. */
static enum status read_config(const struct step_dump *dump, struct replay_settings *settings,
                               struct config *out)
{
    config_init(out);
    TRY(config_from_json(dump->config, out));
    if (settings->model) {
        mem_free(out->model);
        out->model = give(settings->model);
    }
    if (settings->executor) {
        mem_free(out->executor);
        out->executor = give(settings->executor);
    }
    mem_free(out->trace);
    out->trace = NULL;
    return config_check(out);
}

static enum status check_model(const struct step_dump *dump, const struct config *config,
                               struct model_file **out)
{
    AUTO_MEM char *fingerprint = NULL;

    if (!config_model_path(config))
        return fail(ERR_CORRUPT, "the dump names no model; say --model FILE");
    TRY(config_open_model(config, MODEL_WHOLE, out));
    fingerprint = mem_printf("%016" PRIx64, model_file_fingerprint(*out));
    if (strcmp(fingerprint, dump->fingerprint) != 0)
        return fail(ERR_MISMATCH, "%s has fingerprint %s, the model of the dump had %s",
                    config_model_path(config), fingerprint, dump->fingerprint);
    return OK;
}

static enum status run(const char *path, struct replay_settings *settings,
                       enum replay_outcome *outcome_out)
{
    AUTO_CLOSE(step_dump) struct step_dump dump = {0};
    AUTO_CLOSE(config) struct config config = {0};
    AUTO_FREE(model_file) struct model_file *model = NULL;
    AUTO_FREE(executor) struct executor *executor = NULL;
    struct step_replay_result result;

    TRY(step_dump_read(path, &dump));
    show_dump(&dump);
    TRY(read_config(&dump, settings, &config));
    TRY(check_model(&dump, &config, &model));
    TRY(executor_open(&(struct executor_options){.config = &config, .model = model}, &executor));
    TRY(step_replay_run(
        &(struct step_replay_options){
            .dump = &dump,
            .config = &config,
            .executor = executor,
            .vocab_size = model_file_vocabulary(model)->num_tokens,
            .progress = show_step,
        },
        &result));
    if (result.shift > 0)
        fprintf(stderr, "steps are numbered %" PRId64 " higher than they were\n", result.shift);
    show_result(&dump, &result, settings->json);
    *outcome_out = result.outcome;
    return OK;
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

int cmd_replay(int argc, char **argv)
{
    struct replay_settings settings = {0};
    struct option_set set = {rows, COUNT_OF(rows), &settings};
    const char **words = mem_new_array(const char *, (size_t)argc);
    enum replay_outcome outcome = REPLAY_NO_FAILURE;
    enum status status;
    int num_words = 0;

    log_set_role("replay", -1);
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            mem_free(words);
            return print_help();
        }
    options_init(&set);
    status = options_parse(&set, 1, argc, argv, words, &num_words);
    if (status == OK && num_words != 1)
        status = fail(ERR_INVALID, "one FILE is wanted, %d are given", num_words);
    if (status == OK)
        status = run(words[0], &settings, &outcome);
    if (status != OK)
        fprintf(stderr, "tandem replay: %s\n", fail_text());
    options_close(&set);
    mem_free(words);
    return status != OK ? 2 : outcome == REPLAY_SAME ? 0 : 1;
}

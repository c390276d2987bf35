#include "engine/core/step_dump.h"

#include "proto/base/build_id.h"
#include "proto/base/log.h"
#include "proto/wire/message.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char FORMAT[] = "tandem step dump 1";

enum { MAX_DUMP_BYTES = 1 << 30, BACKGROUND_PRIORITY = 5 };

void step_dump_close(struct step_dump *dump)
{
    mem_free(dump->config);
    mem_free(dump->build_id);
    mem_free(dump->fingerprint);
    mem_free(dump->cause);
    mem_free(dump->verb);
    arena_close(&dump->arena);
    *dump = (struct step_dump){0};
}

int32_t rank_in_sentence(const char *sentence)
{
    int rank;

    return sscanf(sentence, "rank %d", &rank) == 1 ? rank : -1;
}

/* ---- writing --------------------------------------------------------------------------------- */

static json_t *body_message(const struct message_type *type, int64_t step, const void *body)
{
    const struct message message = {
        .header = {.type = type->id,
                   .protocol = PROTOCOL_VERSION,
                   .build = build_id_hash(),
                   .step = step},
        .type = type,
        .body = (void *)body,
    };

    return message_to_json(&message);
}

static json_t *steps_json(const struct step_dump *dump)
{
    json_t *list = json_array();

    for (int32_t i = 0; i < dump->num_steps; i++) {
        const struct dumped_step *step = &dump->steps[i];
        json_t *json = json_object();

        json_object_set_new(json, "plan",
                            body_message(&scheduler_output_type, step->id, &step->plan));
        json_object_set_new(json, "masks",
                            body_message(&grammar_output_type, step->id, &step->masks));
        json_array_append_new(list, json);
    }
    return list;
}

static json_t *stats_json(const struct scheduler_stats *stats)
{
    return json_pack("{s:i, s:i, s:i, s:i, s:I}", "running", stats->num_running, "waiting",
                     stats->num_waiting, "deferred", stats->num_deferred, "free_kv_blocks",
                     stats->num_free_blocks, "preemptions", (json_int_t)stats->num_preemptions);
}

static char *time_text(void)
{
    time_t now = time(NULL);
    struct tm tm;
    char text[32];

    gmtime_r(&now, &tm);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    return mem_strdup(text);
}

/* All but the messages. */
static json_t *dump_json(const struct step_dump *dump, const struct scheduler_stats *stats)
{
    AUTO_MEM char *time = time_text();
    json_t *json = json_pack("{s:s, s:s, s:s, s:s}", "format", FORMAT, "time", time, "build_id",
                             dump->build_id, "fingerprint", dump->fingerprint);

    json_object_set_new(json, "failure",
                        json_pack("{s:s, s:o, s:s, s:I, s:i}", "status", status_name(dump->status),
                                  "cause", json_string(dump->cause), "verb", dump->verb, "step",
                                  (json_int_t)dump->failed_step, "rank", dump->failed_rank));
    json_object_set_new(json, "config", json_loads(dump->config, 0, NULL));
    json_object_set_new(json, "stats", stats_json(stats));
    json_object_set_new(json, "before", body_message(&scheduler_output_type, -1, &dump->before));
    json_object_set_new(json, "steps", steps_json(dump));
    return json;
}

struct wire_writer {
    FILE *f;
    bool is_written;
    int64_t count;
};

static void write_message(void *user, const json_t *message)
{
    struct wire_writer *writer = user;

    writer->is_written &= fputs(writer->count++ > 0 ? ",\n  " : "\n  ", writer->f) != EOF;
    writer->is_written &= json_dumpf(message, writer->f, JSON_COMPACT) == 0;
}

/* The object, and at its end the messages, which are never in memory together. */
static bool write_json(const json_t *json, const struct flight_recorder *wire, FILE *f)
{
    AUTO_MEM char *text = json_dumps(json, JSON_INDENT(1));
    struct wire_writer writer = {.f = f};

    if (!text)
        return false;

    size_t size = strlen(text) - strlen("\n}");

    writer.is_written = fwrite(text, 1, size, f) == size && fputs(",\n \"wire\": [", f) != EOF;
    flight_recorder_each(wire, write_message, &writer);
    return writer.is_written & (fputs("]\n}\n", f) != EOF);
}

/* A file that nobody sees before it is whole. */
static enum status write_whole(const json_t *json, const struct flight_recorder *wire,
                               const char *path)
{
    AUTO_MEM char *part = mem_printf("%s.part", path);
    int fd = open(part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    bool is_written;

    if (!f)
        return fail(ERR_IO, "%s: %m", part);
    is_written = write_json(json, wire, f);
    is_written &= fflush(f) == 0 && fsync(fd) == 0;
    is_written &= fclose(f) == 0;
    if (!is_written || rename(part, path) != 0) {
        enum status status = fail(ERR_IO, "%s: %m", path);

        unlink(part);
        return status;
    }
    return OK;
}

void step_dump_forget_strangers(struct step_dump *dump)
{
    for (int32_t i = 0; i < dump->num_steps; i++) {
        struct scheduler_output *plan = &dump->steps[i].plan;
        int32_t *slots = arena_alloc(&dump->arena, (size_t)plan->num_finished_slots * sizeof *slots), n = 0;

        for (int32_t j = 0; j < plan->num_finished_slots; j++) {
            int32_t slot = plan->finished_slots[j];

            if (scheduler_output_find_new(&dump->before, slot) ||
                (i > 0 && scheduler_output_find_new(&dump->steps[0].plan, slot)))
                slots[n++] = slot;
        }
        plan->finished_slots = slots;
        plan->num_finished_slots = n;
    }
}

struct dump_writer {
    json_t *json;
    struct flight_recorder *wire;
    char *path;
    pthread_t thread;
    atomic_bool is_done;
};

static void *run_writer(void *arg)
{
    struct dump_writer *writer = arg;

    /* Behind those that go on meanwhile. On Linux this is the thread's own priority. */
    if (setpriority(PRIO_PROCESS, (id_t)gettid(), BACKGROUND_PRIORITY) != 0)
        log_debug("a dump is written at full priority: %m");
    if (write_whole(writer->json, writer->wire, writer->path) == OK)
        log_error("the step is in %s, prompts and all; run it again with: tandem replay %s",
                  writer->path, writer->path);
    else
        log_error("the step can't be written down: %s", fail_text());
    json_decref(writer->json);
    flight_recorder_free(writer->wire);
    atomic_store(&writer->is_done, true);
    return NULL;
}

struct dump_writer *dump_writer_start(const struct step_dump *dump,
                                      const struct scheduler_stats *stats,
                                      const struct flight_recorder *wire, const char *folder)
{
    struct dump_writer *writer = mem_new(struct dump_writer);

    writer->json = dump_json(dump, stats);
    writer->wire = flight_recorder_copy(wire);
    writer->path = mem_printf("%s/tandem-%d-step-%" PRId64 "-%" PRId64 ".json", folder,
                              (int)getpid(), dump->failed_step, (int64_t)time(NULL));

    int error = pthread_create(&writer->thread, NULL, run_writer, writer);

    ASSERT(error == 0, "no thread for a dump: %s", strerror(error));
    return writer;
}

bool dump_writer_is_busy(const struct dump_writer *writer)
{
    return writer && !atomic_load(&writer->is_done);
}

void dump_writer_free(struct dump_writer *writer)
{
    if (!writer)
        return;
    pthread_join(writer->thread, NULL);
    mem_free(writer->path);
    mem_free(writer);
}

/* ---- reading --------------------------------------------------------------------------------- */

static enum status load_json(const char *path, json_t **out)
{
    FILE *f = fopen(path, "re");
    struct stat stat;
    json_error_t error;

    if (!f)
        return fail(errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%m");
    if (fstat(fileno(f), &stat) != 0 || !S_ISREG(stat.st_mode) || stat.st_size > MAX_DUMP_BYTES) {
        fclose(f);
        return fail(ERR_CORRUPT, "is no file of %d bytes at most", MAX_DUMP_BYTES);
    }
    *out = json_loadf(f, JSON_REJECT_DUPLICATES, &error);
    fclose(f);
    if (!*out)
        return fail(ERR_CORRUPT, "line %d, column %d: %s", error.line, error.column, error.text);
    return OK;
}

static enum status read_text(const json_t *object, const char *key, char **out)
{
    const char *text = json_string_value(json_object_get(object, key));

    if (!text)
        return fail(ERR_CORRUPT, "\"%s\" is missing, or is no text", key);
    *out = mem_strdup(text);
    return OK;
}

static enum status read_integer(const json_t *object, const char *key, int64_t least, int64_t most,
                                int64_t *out)
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_integer(value) || json_integer_value(value) < least ||
        json_integer_value(value) > most)
        return fail(ERR_CORRUPT, "\"%s\" is missing, or is no number from %" PRId64 " to %" PRId64,
                    key, least, most);
    *out = json_integer_value(value);
    return OK;
}

/* The body of a message of this type; its step to step_out, which may be NULL. */
static enum status read_message(const json_t *object, const char *key,
                                const struct message_type *type, struct arena *arena,
                                void *body_out, int64_t *step_out)
{
    struct message message;

    if (message_from_json(json_object_get(object, key), arena, &message) != OK)
        return fail(ERR_CORRUPT, "\"%s\": %s", key, fail_text());
    if (message.type != type)
        return fail(ERR_CORRUPT, "\"%s\" is a %s, not a %s", key, message.type->name, type->name);
    memcpy(body_out, message.body, type->size);
    if (step_out)
        *step_out = message.header.step;
    return OK;
}

static enum status read_step(const json_t *json, struct arena *arena, struct dumped_step *out)
{
    int64_t masks_step;

    TRY(read_message(json, "plan", &scheduler_output_type, arena, &out->plan, &out->id));
    TRY(read_message(json, "masks", &grammar_output_type, arena, &out->masks, &masks_step));
    if (out->id < 0 || masks_step != out->id)
        return fail(ERR_CORRUPT, "a plan of step %" PRId64 " with masks of step %" PRId64, out->id,
                    masks_step);
    return OK;
}

static enum status read_steps(const json_t *root, struct step_dump *out)
{
    const json_t *steps = json_object_get(root, "steps");
    size_t n = json_array_size(steps);

    if (n < 1 || n > DUMP_MAX_STEPS)
        return fail(ERR_CORRUPT, "\"steps\" has %zu steps; 1 or %d are in flight", n,
                    DUMP_MAX_STEPS);
    for (size_t i = 0; i < n; i++)
        TRY(read_step(json_array_get(steps, i), &out->arena, &out->steps[i]));
    if (n > 1 && out->steps[1].id != out->steps[0].id + 1)
        return fail(ERR_CORRUPT, "step %" PRId64 " follows step %" PRId64, out->steps[1].id,
                    out->steps[0].id);
    out->num_steps = (int32_t)n;
    return OK;
}

static enum status read_status(const json_t *failure, enum status *out)
{
    const char *name = json_string_value(json_object_get(failure, "status"));

    for (int status = OK + 1; name && status < NUM_STATUS; status++)
        if (strcmp(status_name((enum status)status), name) == 0) {
            *out = (enum status)status;
            return OK;
        }
    return fail(ERR_CORRUPT, "\"status\" is missing, or is none that fails");
}

static enum status read_failure(const json_t *failure, struct step_dump *out)
{
    int64_t rank;

    TRY(read_status(failure, &out->status));
    TRY(read_text(failure, "cause", &out->cause));
    TRY(read_text(failure, "verb", &out->verb));
    TRY(read_integer(failure, "step", 0, (int64_t)1 << 53, &out->failed_step));
    TRY(read_integer(failure, "rank", -1, MAX_RANKS, &rank));
    out->failed_rank = (int32_t)rank;
    return OK;
}

static enum status read_dump(const json_t *root, struct step_dump *out)
{
    const char *format = json_string_value(json_object_get(root, "format"));
    char *config;

    if (!format || strcmp(format, FORMAT) != 0)
        return fail(ERR_CORRUPT, "is no dump of a step: \"format\" is not \"%s\"", FORMAT);
    TRY(read_text(root, "build_id", &out->build_id));
    TRY(read_text(root, "fingerprint", &out->fingerprint));
    TRY(read_failure(json_object_get(root, "failure"), out));
    TRY(read_message(root, "before", &scheduler_output_type, &out->arena, &out->before, NULL));
    TRY(read_steps(root, out));
    config = json_dumps(json_object_get(root, "config"), JSON_COMPACT);
    if (!config)
        return fail(ERR_CORRUPT, "\"config\" is missing");
    out->config = config;
    return OK;
}

enum status step_dump_read(const char *path, struct step_dump *out)
{
    AUTO_CLOSE(step_dump) struct step_dump dump = {0};
    json_t *root = NULL;
    enum status status = load_json(path, &root);

    if (status == OK)
        status = read_dump(root, &dump);
    json_decref(root);
    if (status != OK)
        return fail_in(path, status);
    *out = dump;
    dump = (struct step_dump){0};
    return OK;
}

#include "engine/launch/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- engines --------------------------------------------------------------------------------- */

static bool is_tandem(const struct launch_app *app)
{
    const char *slash = strrchr(app->words[0], '/');

    return strcmp(slash ? slash + 1 : app->words[0], "tandem") == 0 && app->num_words > 1;
}

static bool is_engine(const struct launch_app *app)
{
    return is_tandem(app) &&
           (strcmp(app->words[1], "serve") == 0 || strcmp(app->words[1], "generate") == 0);
}

static bool is_worker(const struct launch_app *app)
{
    return is_tandem(app) && strcmp(app->words[1], "worker") == 0;
}

/* The value of "--flag VALUE" or "--flag=VALUE" among the words; NULL: it is not said. */
static const char *find_flag(const struct launch_app *app, const char *flag)
{
    size_t size = strlen(flag);

    for (int32_t i = 2; i < app->num_words; i++) {
        if (strcmp(app->words[i], "--") == 0)
            return NULL;
        if (strncmp(app->words[i], flag, size) != 0)
            continue;
        if (app->words[i][size] == '=')
            return app->words[i] + size + 1;
        if (app->words[i][size] == '\0')
            return i + 1 < app->num_words ? app->words[i + 1] : "";
    }
    return NULL;
}

static const char *find_tp(const struct launch_app *app)
{
    const char *value = find_flag(app, "--tp");

    return value ? value : find_flag(app, "--tensor-parallel-size");
}

static const struct launch_app *find_engine(const struct launch_options *options,
                                            int32_t *count_out)
{
    const struct launch_app *found = NULL;

    *count_out = 0;
    for (int32_t i = 0; i < options->num_apps; i++)
        if (is_engine(&options->apps[i])) {
            found = &options->apps[i];
            ++*count_out;
        }
    return found;
}

static enum status check_engine(const struct launch_options *options,
                                const struct launch_app *engine, int32_t world)
{
    const char *tp = find_tp(engine), *executor = find_flag(engine, "--executor");

    for (int32_t i = 0; i < options->num_apps; i++)
        if (&options->apps[i] != engine && !is_worker(&options->apps[i]))
            return fail(ERR_INVALID, "%s cannot be a rank of an engine; say tandem worker",
                        options->apps[i].words[0]);
    if (options->num_apps > 1 && engine->num > 1)
        return fail(ERR_INVALID,
                    "-np %d of an engine, and its ranks are named too: there is one engine",
                    engine->num);
    if (tp && strtol(tp, NULL, 10) != world)
        return fail(ERR_INVALID, "the engine is told --tp %.16s, and -np says %d ranks", tp, world);
    if (executor && strcmp(executor, "distributed") != 0)
        return fail(ERR_INVALID,
                    "the engine is told --executor %.16s; launched ranks want distributed",
                    executor);
    if (find_flag(engine, "--address-file"))
        return fail(ERR_INVALID,
                    "--address-file: the launcher says where the engine writes its address");
    return OK;
}

/* ---- hosts ----------------------------------------------------------------------------------- */

static const char here[] = "localhost";

static int32_t num_slots(const struct launch_options *options)
{
    int32_t sum = 0;

    for (int32_t i = 0; i < options->hosts.count; i++)
        sum += options->hosts.hosts[i].slots;
    return sum;
}

static int32_t num_ranks(const struct launch_options *options, const struct launch_app *engine)
{
    int32_t sum = 0;

    if (options->num_apps == 1 && options->apps[0].num == 0 && options->hosts.count > 0)
        return num_slots(options); /* as mpirun: all that there is */
    for (int32_t i = 0; i < options->num_apps; i++)
        if (options->num_apps == 1 || &options->apps[i] != engine)
            sum += MAX(options->apps[i].num, 1);
    return sum;
}

/* Gives `each` to a host after the other, as often as somebody takes some. Returns what nobody
 * takes. */
static int32_t deal_all(const struct host_list *list, int32_t each, bool up_to_max, int32_t left,
                        int32_t *ranks)
{
    for (int32_t before = -1; left > 0 && left != before;) {
        before = left;
        for (int32_t i = 0; i < list->count; i++) {
            int32_t most = up_to_max ? list->hosts[i].max_slots : list->hosts[i].slots;
            int32_t n = MIN(each, left);

            n = MIN(n, MAX(most - ranks[i], 0));
            ranks[i] += n;
            left -= n;
        }
    }
    return left;
}

/* How many ranks each named host gets. */
static enum status share_out(const struct launch_options *options, int32_t world, int32_t *ranks)
{
    const struct host_list *list = &options->hosts;
    int32_t slots = num_slots(options);

    if (world > slots && !options->oversubscribe)
        return fail(ERR_INVALID,
                    "%d ranks, and the hosts have %d slots; more by --host NAME:N or slots=N, "
                    "or say --oversubscribe",
                    world, slots);
    int32_t left =
        deal_all(list, options->binding.map_by == MAP_NODE ? 1 : world, false, world, ranks);
    left = deal_all(list, 1, true, left, ranks);
    return left == 0 ? OK
                     : fail(ERR_INVALID, "%d ranks, and the hosts bear %d (max_slots)", world,
                            world - left);
}

/* ---- processes ------------------------------------------------------------------------------- */

static void add_host(struct plan *plan, const char *name, bool is_local, int32_t local_world)
{
    int32_t node = -1;

    if (local_world > 0) {
        node = 0;
        for (int32_t i = 0; i < plan->num_hosts; i++)
            node += plan->hosts[i].local_world > 0;
    }
    plan->hosts[plan->num_hosts++] = (struct planned_host){name, is_local, node, local_world};
    plan->has_remote_hosts = plan->has_remote_hosts || !is_local;
}

static void set_words(struct planned_process *process, const char *const *words, int32_t count,
                      const char *const *more, int32_t num_more)
{
    process->words = mem_new_array(const char *, (size_t)(count + num_more + 1));
    for (int32_t i = 0; i < count; i++)
        process->words[i] = words[i];
    for (int32_t i = 0; i < num_more; i++)
        process->words[count + i] = more[i];
    process->num_words = count + num_more;
}

static void add_engine(struct plan *plan, const struct launch_app *app)
{
    const char *more[4];
    int32_t n = 0;

    if (!find_flag(app, "--executor")) {
        more[n++] = "--executor";
        more[n++] = "distributed";
    }
    if (!find_tp(app)) {
        snprintf(plan->world_text, sizeof plan->world_text, "%d", plan->world);
        more[n++] = "--tp";
        more[n++] = plan->world_text;
    }
    plan->processes[plan->count] = (struct planned_process){.rank = ENGINE_RANK, .app = app};
    set_words(&plan->processes[plan->count++], (const char *const *)app->words, app->num_words,
              more, n);
}

static void add_rank(struct plan *plan, const struct launch_app *app, bool is_of_engine)
{
    struct planned_process *process = &plan->processes[plan->count++];

    *process = (struct planned_process){.rank = plan->count - 1 - plan->has_engine, .app = app};
    if (is_of_engine) {
        const char *words[] = {app->words[0], "worker"};

        set_words(process, words, 2, NULL, 0);
    } else {
        set_words(process, (const char *const *)app->words, app->num_words, NULL, 0);
    }
}

static void add_processes(struct plan *plan, const struct launch_options *options,
                          const struct launch_app *engine)
{
    plan->processes = mem_new_array(struct planned_process, (size_t)plan->world + 1);
    plan->has_engine = engine != NULL;
    if (engine)
        add_engine(plan, engine);
    if (options->num_apps == 1) {
        for (int32_t i = 0; i < plan->world; i++)
            add_rank(plan, &options->apps[0], engine != NULL);
        return;
    }
    for (int32_t i = 0; i < options->num_apps; i++)
        for (int32_t k = 0; &options->apps[i] != engine && k < MAX(options->apps[i].num, 1); k++)
            add_rank(plan, &options->apps[i], false);
}

/* Slots: a host is filled, then the next. Nodes: a rank each in turn. */
static void place_ranks(struct plan *plan, enum map_by map_by)
{
    int32_t *used = mem_new_array(int32_t, (size_t)plan->num_hosts);
    int32_t host = 0;

    for (int32_t i = plan->has_engine; i < plan->count; i++) {
        while (used[host] == plan->hosts[host].local_world)
            host = (host + 1) % plan->num_hosts;
        plan->processes[i].host = host;
        plan->processes[i].local_rank = used[host]++;
        if (map_by == MAP_NODE)
            host = (host + 1) % plan->num_hosts;
    }
    mem_free(used);
}

enum status plan_make(const struct launch_options *options, struct plan *out)
{
    int32_t num_engines;
    const struct launch_app *engine = find_engine(options, &num_engines);
    AUTO_MEM int32_t *ranks = mem_new_array(int32_t, (size_t)options->hosts.count + 1);
    int32_t world = num_ranks(options, engine);

    *out = (struct plan){.world = world};
    if (num_engines > 1)
        return fail(ERR_INVALID, "%d engines are named; one launch has one", num_engines);
    if (world > MAX_LAUNCHED - 1)
        return fail(ERR_INVALID, "%d ranks, %d are the most", world, MAX_LAUNCHED - 1);
    if (engine)
        TRY(check_engine(options, engine, world));
    if (options->hosts.count > 0)
        TRY(share_out(options, world, ranks));

    out->hosts = mem_new_array(struct planned_host, (size_t)options->hosts.count + 1);
    bool is_here_named = false;
    for (int32_t i = 0; i < options->hosts.count; i++)
        is_here_named =
            is_here_named || (ranks[i] > 0 && host_is_local(options->hosts.hosts[i].name));
    if (options->hosts.count == 0)
        add_host(out, here, true, world);
    else if (engine && !is_here_named)
        add_host(out, here, true, 0);
    for (int32_t i = 0; i < options->hosts.count; i++)
        if (ranks[i] > 0)
            add_host(out, options->hosts.hosts[i].name, host_is_local(options->hosts.hosts[i].name),
                     ranks[i]);
    add_processes(out, options, engine);
    place_ranks(out, options->binding.map_by);
    for (int32_t i = 0; engine && i < out->num_hosts; i++)
        if (out->hosts[i].is_local) {
            out->processes[0].host = i;
            break;
        }
    return OK;
}

const char *plan_engine_flag(const struct plan *plan, const char *flag)
{
    return plan->has_engine ? find_flag(plan->processes[0].app, flag) : NULL;
}

void plan_close(struct plan *plan)
{
    for (int32_t i = 0; i < plan->count; i++)
        mem_free(plan->processes[i].words);
    mem_free(plan->processes);
    mem_free(plan->hosts);
    *plan = (struct plan){0};
}

#include "engine/simulation/scenario.h"

#include "engine/simulation/oracle.h"
#include "proto/base/rounding.h"

#include <string.h>

enum { MAX_MODEL_LEN = 160, NUM_PREFIXES = 3 };

static const int64_t MS = 1000000;

/* What the clients of a scenario have in common. */
struct theme {
    const token_id *prefixes[NUM_PREFIXES]; /* [max_model_len] that prompts begin with */
    token_id eos;
    int64_t gap_max_ns; /* between arrivals */
    int32_t prompt_max, output_max;
    int32_t zero_percent; /* of the tokens of prompts: memory that nobody wrote to looks like it */
    int32_t chat_percent, grammar_percent, late_percent, abort_percent, salt_percent;
};

static const token_id *draw_tokens(struct scenario *scenario, struct random *random, int32_t n)
{
    token_id *tokens = arena_alloc(&scenario->arena, sizeof *tokens * (size_t)n);

    for (int32_t i = 0; i < n; i++)
        tokens[i] = random_below(random, scenario->vocab_size);
    return tokens;
}

/* ---- clients -------------------------------------------------------------------------------- */

/* The second turn of a chat: what another asked and was answered, cut off anywhere, and more. */
static int32_t continue_prompt(const struct scenario *scenario, struct random *random,
                               token_id *prompt, int32_t most)
{
    const struct client *other =
        &scenario->clients[random_below(random, scenario->num_clients - 1)];
    int32_t n = random_below(random, MIN(most, other->num_prompt + other->num_tokens) + 1);

    for (int32_t i = 0; i < n; i++)
        prompt[i] = i < other->num_prompt ? other->prompt[i] : other->tokens[i - other->num_prompt];
    return n;
}

/* Begins with what others may have in the cache. */
static void draw_prompt(struct scenario *scenario, struct random *random, const struct theme *theme,
                        struct client *client)
{
    int32_t most = scenario->max_model_len - 1, num_shared = 0, num_more;
    token_id *prompt = arena_alloc(&scenario->arena, sizeof *prompt * (size_t)most);

    if (scenario->num_clients > 1 && random_chance(random, theme->chat_percent)) {
        num_shared = continue_prompt(scenario, random, prompt, most);
    } else if (random_chance(random, 70)) {
        num_shared = random_below(random, theme->prompt_max + 1);
        memcpy(prompt, theme->prefixes[random_below(random, NUM_PREFIXES)],
               sizeof *prompt * (size_t)num_shared);
    }
    num_more =
        MIN((int32_t)random_between(random, num_shared == 0, theme->prompt_max), most - num_shared);
    for (int32_t i = 0; i < num_more; i++)
        prompt[num_shared + i] = random_chance(random, theme->zero_percent)
                                     ? 0
                                     : random_below(random, scenario->vocab_size);
    client->prompt = prompt;
    client->num_prompt = num_shared + num_more;
    client->cache_salt = random_chance(random, theme->salt_percent) ? "salt" : NULL;
}

static void draw_params(struct scenario *scenario, struct random *random, const struct theme *theme,
                        struct client *client)
{
    struct sampling_params *params = &client->params;
    int32_t num_stop = random_chance(random, 30) ? random_below(random, 3) : 0;

    sampling_params_init(params);
    params->seed = (int64_t)(random_next(random) >> 1);
    params->max_tokens =
        random_chance(random, 5) ? -1 : (int32_t)random_between(random, 1, theme->output_max);
    params->min_tokens = random_chance(random, 20) ? random_below(random, 10) : 0;
    params->ignore_eos = random_chance(random, 30);
    params->logprobs = random_chance(random, 20) ? random_below(random, 4) : -1;
    params->stop_token_ids = draw_tokens(scenario, random, num_stop);
    params->num_stop_token_ids = num_stop;
    client->eos = theme->eos;
}

static void draw_grammar(const struct scenario *scenario, struct random *random,
                         const struct theme *theme, struct client *client)
{
    client->has_grammar = random_chance(random, theme->grammar_percent);
    if (!client->has_grammar)
        return;
    client->language = (struct toy_grammar_options){
        .seed = random_next(random),
        .vocab_size = scenario->vocab_size,
        .num_tokens = random_below(random, theme->output_max + 5),
        .stop_token = theme->eos,
        .late_percent = theme->late_percent,
        .late_ns = random_between(random, 1, 30 * MS),
    };
    client->grammar_after_ns = random_chance(random, 30) ? random_between(random, 1, 20 * MS) : 0;
    client->grammar_fails = client->grammar_after_ns > 0 && random_chance(random, 15);
}

static void draw_client(struct scenario *scenario, struct random *random, const struct theme *theme,
                        int64_t *now_ns)
{
    struct client *client = &scenario->clients[scenario->num_clients++];

    *now_ns += random_chance(random, 40) ? 0 : random_between(random, 0, theme->gap_max_ns);
    *client = (struct client){.arrives_ns = *now_ns, .abort_after_ns = NEVER_NS};
    draw_prompt(scenario, random, theme, client);
    draw_params(scenario, random, theme, client);
    draw_grammar(scenario, random, theme, client);
    client->priority = (int32_t)random_between(random, -2, 2);
    if (random_chance(random, theme->abort_percent))
        client->abort_after_ns = random_between(random, 0, 40 * MS);
    oracle_answer(scenario, client);
}

static void draw_clients(struct scenario *scenario, struct random *random)
{
    int32_t num_clients = (int32_t)random_between(random, 1, MAX_CLIENTS);
    bool is_idle_between = random_chance(random, 5); /* beats are all that is heard */
    struct theme theme = {
        .eos = random_below(random, scenario->vocab_size),
        .gap_max_ns = is_idle_between ? 15000 * MS : random_between(random, 1, 20 * MS),
        .prompt_max = (int32_t)random_between(random, 1, scenario->max_model_len - 1),
        .output_max = (int32_t)random_between(random, 1, 80),
        .zero_percent = random_chance(random, 50) ? 50 : 0,
        .chat_percent = random_chance(random, 50) ? random_below(random, 101) : 0,
        .grammar_percent = random_chance(random, 50) ? random_below(random, 101) : 0,
        .late_percent = random_chance(random, 50) ? random_below(random, 60) : 0,
        .abort_percent = random_chance(random, 60) ? random_below(random, 60) : 0,
        .salt_percent = random_chance(random, 30) ? 50 : 0,
    };
    int64_t now_ns = 0;

    for (int32_t i = 0; i < NUM_PREFIXES; i++)
        theme.prefixes[i] = draw_tokens(scenario, random, scenario->max_model_len);
    for (int32_t i = 0; i < num_clients; i++)
        draw_client(scenario, random, &theme, &now_ns);
}

static void draw_order(struct random *random, int64_t at_ns, struct planned_order *out)
{
    *out = (struct planned_order){
        .at_ns = at_ns,
        .kind = (enum planned_order_kind)random_below(random, ORDER_RESET_CACHE + 1),
        .mode = (enum pause_mode)random_below(random, NUM_PAUSE_MODES),
        .clear_cache = random_chance(random, 50),
        .reset_running = random_chance(random, 50),
    };
}

static void draw_orders(struct scenario *scenario, struct random *random)
{
    int64_t last_ns = scenario->clients[scenario->num_clients - 1].arrives_ns, at_ns = 0;

    if (random_chance(random, 70))
        return;
    scenario->num_orders = (int32_t)random_between(random, 2, MAX_ORDERS);
    for (int32_t i = 0; i < scenario->num_orders; i++) {
        at_ns += random_between(random, 0, last_ns / 2 + 20 * MS);
        draw_order(random, at_ns, &scenario->orders[i]);
    }
    scenario->orders[scenario->num_orders - 1].kind = ORDER_RESUME_CORE;
}

/* ---- setups --------------------------------------------------------------------------------- */

static void draw_setup(const struct scenario *scenario, struct random *random, struct setup *out)
{
    int32_t most = scenario->max_model_len;
    int32_t least_blocks = divide_up(most, scenario->block_size);

    *out = (struct setup){
        .enable_prefix_caching = random_chance(random, 75),
        .enable_chunked_prefill = random_chance(random, 85),
        .policy = random_chance(random, 40) ? POLICY_PRIORITY : POLICY_FCFS,
        .world = random_chance(random, 60) ? 1 : (int32_t)random_between(random, 2, 4),
        .num_blocks = least_blocks + random_below(random, random_chance(random, 60) ? 4 : 64),
        .max_num_seqs = (int32_t)random_between(random, 1, 12),
        .max_num_batched_tokens = (int32_t)random_between(random, 1, most * 2),
        .long_prefill_token_threshold =
            random_chance(random, 40) ? (int32_t)random_between(random, 1, 32) : 0,
        .long_prefill_token_threshold_adaptive = random_chance(random, 20),
        .decode_slowdown = random_chance(random, 60) ? 1 + random_below(random, 30) / 10.0 : 0,
        .watermark = random_chance(random, 20) ? random_below(random, 50) / 100.0 : 0,
        .latency_max_ns = random_between(random, 2000, 200000),
        .step_max_ns = random_between(random, 2000, 4 * MS),
    };
    if (random_chance(random, 10)) /* too few for requests of full length */
        out->num_blocks = (int32_t)random_between(random, 1, least_blocks);
    if (random_chance(random, 3))
        out->step_max_ns = 12000 * MS; /* longer than a silence may be: the ranks beat meanwhile */
    if (random_chance(random, 20))
        out->max_num_active_seqs = (int32_t)random_between(random, 1, out->max_num_seqs);
    if (!out->enable_chunked_prefill)
        out->max_num_batched_tokens = MAX(out->max_num_batched_tokens, most);
}

static void draw_faults(struct random *random, struct setup *setup)
{
    int64_t at_frame = 0;

    setup->replaces_ranks = random_chance(random, 60);
    setup->num_faults = (int32_t)random_between(random, 1, MAX_FAULTS - 1);
    for (int32_t i = 0; i < setup->num_faults; i++) {
        at_frame += random_between(random, 1, random_chance(random, 20) ? 20 : 400);
        setup->faults[i] = (struct planned_fault){
            .kind = (enum fault_kind)random_between(random, FAULT_NONE + 1, NUM_FAULT_KINDS - 1),
            .at_frame = at_frame,
        };
    }
}

/* The same engine in sync and in async, and another one; or two with faults. */
static void draw_setups(struct scenario *scenario, struct random *random)
{
    struct setup *setups = scenario->setups;
    bool has_faults = random_chance(random, 40);

    scenario->num_setups = has_faults ? 2 : 3;
    for (int32_t i = 0; i < scenario->num_setups; i++)
        draw_setup(scenario, random, &setups[i]);
    setups[0].async_scheduling = false;
    if (!has_faults)
        setups[1] = setups[0];
    setups[1].async_scheduling = true;
    setups[2].async_scheduling = random_chance(random, 70);
    for (int32_t i = 0; has_faults && i < scenario->num_setups; i++)
        draw_faults(random, &setups[i]);
}

void scenario_draw(uint64_t seed, struct scenario *out)
{
    static const int32_t block_sizes[] = {4, 8, 16};
    struct random random = {.state = mix(seed)};
    struct arena arena = out->arena;

    arena_reset(&arena);
    *out = (struct scenario){.seed = seed, .arena = arena};
    /* With few tokens everything has a common prefix. */
    out->vocab_size = (int32_t)(random_chance(&random, 30) ? random_between(&random, 2, 8)
                                                           : random_between(&random, 20, 150));
    out->max_model_len = (int32_t)random_between(&random, 24, MAX_MODEL_LEN);
    out->block_size = block_sizes[random_below(&random, COUNT_OF(block_sizes))];
    draw_clients(out, &random);
    draw_orders(out, &random);
    draw_setups(out, &random);
}

void scenario_close(struct scenario *scenario)
{
    arena_close(&scenario->arena);
}

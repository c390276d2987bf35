#include "tests/support/ranks.h"

#include "proto/base/clock.h"
#include "worker/comm_net.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct rank {
    const struct ranks_script *script;
    const char *comm_path;
    struct comm_net *const *nets; /* [world]: what each listens with, if they are apart, */
    const char *const *endpoints; /* and where: for all, though a rank that has failed frees its own net */
    int64_t buffer_bytes;
    int32_t rank;
    float *logits; /* [most rows, vocab_size] of all ranks */
    _Atomic int *turn; /* of all ranks: who touches the logits after whom */
    enum status status;
    char failure[1024];
};

/* A step's arrays, as the worker would stage them. */
struct staged {
    struct batch_view batch;
    int32_t *row_start, *positions, *block_tables, *ids, *logit_rows;
    int32_t num_logit_rows;
};

/* ---- sizes ---------------------------------------------------------------------------------- */

static int32_t blocks_of_request(const struct ranks_script *script)
{
    int32_t longest = 0;

    for (int32_t i = 0; i < script->num_requests; i++)
        longest = MAX(longest, script->requests[i].num_ids);
    return longest / KV_BLOCK_TOKENS + 1;
}

static int32_t rows_of_step(const struct ranks_step *step)
{
    int32_t rows = 0;

    for (int32_t i = 0; i < step->num_chunks; i++)
        rows += step->chunks[i].to - step->chunks[i].from;
    return rows;
}

static int32_t most_rows(const struct ranks_script *script)
{
    int32_t rows = 0;

    for (int32_t i = 0; i < script->num_steps; i++)
        rows = MAX(rows, rows_of_step(&script->steps[i]));
    return rows;
}

/* ---- one step ------------------------------------------------------------------------------- */

static struct staged staged_new(const struct ranks_script *script)
{
    int32_t max_rows = most_rows(script);
    struct staged staged = {
        .row_start = mem_new_array(int32_t, script->num_requests + 1),
        .positions = mem_new_array(int32_t, max_rows),
        .block_tables = mem_new_array(int32_t, script->num_requests * blocks_of_request(script)),
        .ids = mem_new_array(int32_t, max_rows),
        .logit_rows = mem_new_array(int32_t, max_rows),
    };

    return staged;
}

static void staged_close(struct staged *staged)
{
    mem_free(staged->row_start);
    mem_free(staged->positions);
    mem_free(staged->block_tables);
    mem_free(staged->ids);
    mem_free(staged->logit_rows);
}

/* Requests' blocks are interleaved, so that no request has neighbouring ones. */
static void stage(struct staged *staged, const struct ranks_script *script,
                  const struct ranks_step *step)
{
    int32_t stride = blocks_of_request(script), row = 0;

    staged->num_logit_rows = 0;
    for (int32_t i = 0; i < step->num_chunks; i++) {
        const struct ranks_chunk *chunk = &step->chunks[i];

        staged->row_start[i] = row;
        for (int32_t b = 0; b < stride; b++)
            staged->block_tables[i * stride + b] = b * script->num_requests + chunk->request;
        for (int32_t p = chunk->from; p < chunk->to; p++, row++) {
            staged->positions[row] = p;
            staged->ids[row] = script->requests[chunk->request].ids[p];
            if (p >= chunk->to - chunk->num_logits)
                staged->logit_rows[staged->num_logit_rows++] = row;
        }
    }
    staged->row_start[step->num_chunks] = row;
    staged->batch = (struct batch_view){
        .rows = row,
        .num_requests = step->num_chunks,
        .row_start = staged->row_start,
        .positions = staged->positions,
        .block_tables = staged->block_tables,
        .block_table_stride = stride,
    };
}

/* ---- a rank -----------------------------------------------------------------------------------
 */

/* The ranks wait for each other by their comm, which TSan does not see through: each has mapped it at an
 * address of its own. This tells it of the order. */
static void take_turn(const struct rank *self)
{
    atomic_fetch_add(self->turn, 1);
}

/* Puts this rank's slice of each row beside the others', and waits until all have. */
static enum status join_logits(const struct rank *self, const struct shard *shard,
                               struct comm *comm, const float *slice, int32_t rows)
{
    int64_t vocab_size = model_file_config(self->script->file)->vocab_size;
    double nothing = 0;

    take_turn(self);
    for (int32_t row = 0; row < rows; row++)
        memcpy(self->logits + row * vocab_size + shard->first_token,
               slice + (int64_t)row * shard->num_tokens, sizeof *slice * (size_t)shard->num_tokens);
    take_turn(self);
    TRY(comm_all_reduce_f64(comm, &nothing, 1));
    take_turn(self);
    return OK;
}

static enum status play_steps(const struct rank *self, struct model *model, struct comm *comm)
{
    const struct ranks_script *script = self->script;
    const struct shard *shard = model_shard(model);
    AUTO_MEM float *slice = mem_new_array(float, most_rows(script) * (int64_t)shard->num_tokens);
    __attribute__((cleanup(staged_close))) struct staged staged = staged_new(script);

    for (int32_t i = 0; i < script->num_steps; i++) {
        if (rows_of_step(&script->steps[i]) == 0)
            continue;
        stage(&staged, script, &script->steps[i]);
        TRY(model_forward(model, &(struct model_step){
                                     .batch = staged.batch,
                                     .ids = staged.ids,
                                     .logit_rows = staged.logit_rows,
                                     .num_logit_rows = staged.num_logit_rows,
                                     .logits_out = slice,
                                 }));
        TRY(join_logits(self, shard, comm, slice, staged.num_logit_rows));
        if (self->rank == 0 && script->on_logits && staged.num_logit_rows > 0)
            script->on_logits(script->user, i, self->logits);
        take_turn(self);
    }
    return OK;
}

static enum status play_model(const struct rank *self, struct device *dev, struct comm *comm)
{
    const struct ranks_script *script = self->script;
    AUTO_FREE(model) struct model *model = NULL;

    TRY(model_load(dev, script->file,
                   &(struct model_options){
                       .rank = self->rank,
                       .world = script->world,
                       .kv_type = script->kv_type,
                       .max_batched_tokens = most_rows(script),
                       .max_logit_rows = most_rows(script),
                       .max_position = blocks_of_request(script) * KV_BLOCK_TOKENS,
                   },
                   &model));
    TRY(model_alloc_kv(model, blocks_of_request(script) * script->num_requests));
    if (self->rank == 0)
        model_observe(model, script->observer, script->user);
    model_connect(model, comm);
    return play_steps(self, model, comm);
}

static enum status meet(const struct rank *self, struct comm **out)
{
    int32_t world = self->script->world;
    enum status status;

    if (!self->script->are_apart)
        return comm_open(self->comm_path, self->rank, world, out);
    status = comm_net_join(self->nets[self->rank],
                           &(struct comm_net_group){
                               .rank = self->rank,
                               .world = world,
                               .endpoints = self->endpoints,
                               .buffer_bytes = self->buffer_bytes,
                           },
                           clock_deadline_ns(60000), out);
    if (status != OK)
        comm_net_free(self->nets[self->rank]);
    return status;
}

static enum status play(const struct rank *self)
{
    struct device *dev = NULL;
    struct comm *comm = NULL;
    enum status status = device_open(
        &(struct device_options){
            .name = "cpu",
            .isa = self->script->isa,
            .num_threads = MAX(self->script->num_threads, 1),
        },
        &dev);

    if (status == OK && self->script->world > 1)
        status = meet(self, &comm);
    if (status == OK)
        status = play_model(self, dev, comm);
    if (status != OK && comm)
        comm_abort(comm);
    comm_close(comm);
    device_close(dev);
    return status;
}

static void *rank_main(void *argument)
{
    struct rank *self = argument;

    self->status = play(self);
    if (self->status != OK)
        snprintf(self->failure, sizeof(self->failure), "rank %d: %s", self->rank, fail_text());
    return NULL;
}

/* A rank that merely noticed another's failure is not the one to report. */
static enum status first_failure(const struct rank *ranks, int32_t world)
{
    const struct rank *failed = NULL;

    for (int32_t i = 0; i < world; i++)
        if (ranks[i].status != OK && (!failed || failed->status == ERR_ABORTED))
            failed = &ranks[i];
    return failed ? fail(failed->status, "%s", failed->failure) : OK;
}

enum status ranks_play(const struct ranks_script *script)
{
    char folder[] = "/tmp/tandem-test-XXXXXX", path[64];
    struct rank ranks[16] = {0};
    pthread_t threads[16];
    _Atomic int turn = 0;
    AUTO_MEM float *logits = mem_new_array(
        float, most_rows(script) * (int64_t)model_file_config(script->file)->vocab_size);

    ASSERT(script->world <= 16);
    ASSERT(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/ranks", folder);

    /* Sums in pieces of 5 rows; every other world without memory that all ranks see. */
    const struct model_config *config = model_file_config(script->file);
    struct model_comm_bytes bytes = model_comm_bytes(config, most_rows(script));
    int64_t buffer_bytes = 5 * config->hidden_size * (int64_t)sizeof(double);

    struct comm_net *nets[16];
    char addresses[16][64];
    const char *endpoints[16];
    struct curve_pair keys;

    if (script->are_apart) {
        TRY(curve_pair_new(&keys));
        for (int32_t i = 0; i < script->world; i++) {
            TRY(comm_net_listen("tcp://127.0.0.1:0", &keys, &nets[i]));
            snprintf(addresses[i], sizeof addresses[i], "%s", comm_net_endpoint(nets[i]));
            endpoints[i] = addresses[i];
        }
    } else if (script->world > 1)
        TRY(comm_create(path, script->world, buffer_bytes, script->world % 2 ? 0 : bytes.shared));
    for (int32_t i = 0; i < script->world; i++) {
        ranks[i] = (struct rank){.script = script, .comm_path = path, .rank = i, .logits = logits,
                                 .nets = nets, .endpoints = endpoints, .buffer_bytes = buffer_bytes, .turn = &turn};
        ASSERT(pthread_create(&threads[i], NULL, rank_main, &ranks[i]) == 0);
    }
    for (int32_t i = 0; i < script->world; i++)
        pthread_join(threads[i], NULL);
    unlink(path);
    rmdir(folder);
    return first_failure(ranks, script->world);
}

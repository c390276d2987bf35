#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "worker/layers/embedding.h"
#include "worker/models/architecture.h"
#include "worker/models/step_inputs.h"
#include "worker/models/wanted_rows.h"

/* That passes may take which are recorded before the first step. A rank says nothing meanwhile. */
enum { RECORD_FIRST_MS = 1500 };

struct model {
    const struct architecture *architecture;
    struct model_config config;
    struct shard shard;
    int32_t max_rows; /* of a step */
    int32_t max_logit_rows;
    int32_t max_position;
    struct weights weights;
    struct slab workspaces;
    struct slab kv_cache;
    int64_t kv_expected;     /* bytes of it that steps were expected to write by now */
    enum kv_type kv_type;
    struct kv_layer *kv;     /* [num_layers] */
    struct step_inputs inputs;
    struct batch_view batch; /* of the step, as kernels read it */
    struct wanted_rows wanted_rows;
    struct batch_view wanted; /* likewise */
    const int32_t *last_tokens; /* see model_read_last_tokens */
    struct recordings *recordings; /* NULL: the device can't, or is not to */
    bool keeps_to_launches;        /* a recording has failed, of this rank or another: there are no new ones */
    const double **parts;    /* [world] */
    int64_t *gathered_bytes; /* [world] */
    struct pass pass;
};

/* ---- loading -------------------------------------------------------------------------------- */

/* What the kernels can't do. Heads, FFN and vocabulary are shard_init's. */
static enum status check_config(const struct model_config *config)
{
    if (config->hidden_size < 32 || config->hidden_size % 32 != 0)
        return fail(ERR_UNSUPPORTED, "hidden size %d is not a multiple of 32", config->hidden_size);
    if (config->head_dim > 256)
        return fail(ERR_UNSUPPORTED, "a head of %d dimensions is more than 256", config->head_dim);
    return OK;
}

static enum status check_rope(const struct model *model)
{
    if (model->config.rope_scaling == ROPE_SCALING_LLAMA3 && !model->weights.rope_factors)
        return fail(ERR_UNSUPPORTED, "%s models have no llama3 RoPE scaling here",
                    model->config.architecture);
    return OK;
}

static enum status deal_heads(struct model *model)
{
    const struct shard *shard = &model->shard;
    int32_t heads_per_kv_head = model->config.num_heads / model->config.num_kv_heads;
    AUTO_MEM int32_t *kv_head_of = mem_new_array(int32_t, shard->num_heads);

    for (int32_t i = 0; i < shard->num_heads; i++)
        kv_head_of[i] = (shard->first_head + i) / heads_per_kv_head - shard->first_kv_head;
    return device_write(model->pass.dev, (int32_t *)model->pass.kv_head_of, kv_head_of,
                        shard->num_heads * (int64_t)sizeof *kv_head_of);
}

static bool reads_floats(const struct linear *linear)
{
    const struct activations some = {.x = (float[]){0}};

    return linear_reads(linear, &some, 0).x != NULL;
}

/* A model of quantised weights alone has no use for its norms as floats. */
static bool weights_read_floats(const struct weights *weights, int32_t num_layers)
{
    bool floats = reads_floats(&weights->embedding) || reads_floats(&weights->output);

    for (int32_t i = 0; i < num_layers; i++)
        floats |= reads_floats(&weights->layers[i].qkv) ||
                  reads_floats(&weights->layers[i].gate_up) ||
                  reads_floats(&weights->layers[i].down);
    return floats;
}

/* Inputs of a matmul, rows × k, as codes, where any `whole` columns are whole groups, and as floats where these are
 * read. */
static struct activations take_activations(struct slab *slab, int64_t rows, int64_t k, int32_t whole, bool floats)
{
    struct activations out = {
        .group = activation_group(whole),
        .q = slab_take_array(slab, int8_t, rows *k),
        .d = slab_take_array(slab, float, rows *k / 32),
        .z = slab_take_array(slab, float, rows *k / 32),
        .sums = slab_take_array(slab, int16_t, rows *k / 16),
        .x = floats ? slab_take_array(slab, float, rows *k) : NULL,
    };

    for (int i = 0; i < NUM_STARTS; i++)
        out.starts[i] = slab_take_array(slab, int32_t, rows *k / 32);
    return out;
}

/* Run twice, see slab.h. */
static void take_workspaces(struct model *model)
{
    const struct model_config *config = &model->config;
    const struct shard *shard = &model->shard;
    struct slab *slab = &model->workspaces;
    struct pass *pass = &model->pass;
    int64_t rows = model->max_rows, inputs = MAX(rows, (int64_t)model->max_logit_rows);
    int64_t q = (int64_t)shard->num_heads * config->head_dim;
    int64_t kv = (int64_t)shard->num_kv_heads * config->head_dim;
    int64_t ffn = (int64_t)shard->num_groups * shard->group_columns;
    int64_t rope_floats = (int64_t)model->max_position * config->rope_dim;
    bool floats = weights_read_floats(&model->weights, config->num_layers);

    pass->own = take_activations(slab, inputs, config->hidden_size, config->hidden_size, floats);
    /* Of the two inputs of row-parallel layers one is quantised at a time. */
    pass->attended = pass->activated = take_activations(slab, rows, MAX(q, ffn), config->head_dim, false);
    pass->activated.group = activation_group(shard->group_columns);
    pass->attended.x = slab_take_array(slab, float, rows *q);
    if (floats)
        pass->activated.x = slab_take_array(slab, float, rows *ffn);
    pass->all.residual = slab_take_array(slab, float, rows * config->hidden_size);
    pass->all.qkv = slab_take_array(slab, float, rows *(q + 2 * kv));
    pass->few.residual = slab_take_array(slab, float, model->max_logit_rows * (int64_t)config->hidden_size);
    pass->few.qkv = slab_take_array(slab, float, model->max_logit_rows *(q + 2 * kv));
    pass->gate_up = slab_take_array(slab, float, rows * 2 * ffn);
    if (shard->world == 1)
        pass->sum = slab_take_array(slab, float, rows * config->hidden_size);
    else
        pass->gathered = slab_take_array(
            slab, float, (int64_t)(SUM_ROWS + shard->world) * config->hidden_size);
    pass->kv_head_of = slab_take_array(slab, int32_t, shard->num_heads);
    pass->rope.cos_sin = slab_take_array(slab, float, rope_floats);
    if (config->sliding_window > 0)
        pass->rope_local.cos_sin = slab_take_array(slab, float, rope_floats);
}

/* The norms that all ranks see. A slab whose base is NULL measures. */
static struct activations take_common(struct slab *slab, const struct model_config *config,
                                      int32_t max_rows)
{
    return take_activations(slab, max_rows, config->hidden_size, config->hidden_size, true);
}

struct model_comm_bytes model_comm_bytes(const struct model_config *config, int32_t max_rows)
{
    struct slab slab = {0};

    take_common(&slab, config, max_rows);
    return (struct model_comm_bytes){
        .buffer = (int64_t)MIN(max_rows, (int32_t)SUM_ROWS) * config->hidden_size * (int64_t)sizeof(double),
        .shared = slab.used,
    };
}

/* They are of arrays, and of sums among ranks, that are about to go. */
static void forget_recordings(struct model *model)
{
    if (model->recordings)
        recordings_forget(model->recordings);
}

void model_connect(struct model *model, struct comm *comm)
{
    struct slab slab = {.base = comm ? comm_shared(comm) : NULL};

    if (comm != model->pass.comm) {
        forget_recordings(model);
        model->keeps_to_launches = false; /* or ranks that join would be of another mind */
    }
    model->pass.comm = comm;
    model->pass.common = (struct activations){0};
    if (!slab.base)
        return;
    slab.bytes = model_comm_bytes(&model->config, model->max_rows).shared;
    model->pass.common = take_common(&slab, &model->config, model->max_rows);
}

static enum status fill_rope(struct model *model, struct rope_table *table,
                             const struct rope_frequencies *frequencies)
{
    int64_t count = (int64_t)model->max_position * frequencies->dim;
    float *place = (float *)table->cos_sin;

    table->dim = frequencies->dim;
    table->adjacent = model->config.rope_is_adjacent;
    if (!device_has_own_memory(model->pass.dev)) {
        rope_fill(place, model->max_position, frequencies);
        return OK;
    }

    AUTO_MEM float *cos_sin = mem_new_array(float, count);

    rope_fill(cos_sin, model->max_position, frequencies);
    return device_write(model->pass.dev, place, cos_sin, count * (int64_t)sizeof *cos_sin);
}

/* Sliding-window layers look so near that scaling never applies to them. */
static enum status fill_ropes(struct model *model)
{
    const struct model_config *config = &model->config;
    AUTO_MEM float *factors = mem_new_array(float, config->rope_dim / 2 + 1);

    if (model->weights.rope_factors)
        TRY(device_read(model->pass.dev, factors, model->weights.rope_factors,
                        config->rope_dim / 2 * (int64_t)sizeof *factors));
    TRY(fill_rope(
        model, &model->pass.rope,
        &(struct rope_frequencies){
            .dim = config->rope_dim,
            .base = config->rope_theta,
            .factor = config->rope_scaling == ROPE_SCALING_LINEAR ? config->rope_scaling_factor : 1,
            .factors = model->weights.rope_factors ? factors : NULL,
        }));
    if (config->sliding_window > 0)
        TRY(fill_rope(model, &model->pass.rope_local,
                      &(struct rope_frequencies){
                          .dim = config->rope_dim,
                          .base = config->rope_theta_local,
                          .factor = 1,
                      }));
    return OK;
}

static void make_pass(struct model *model, struct device *dev)
{
    struct pass *pass = &model->pass;

    pass->dev = dev;
    pass->kernels = device_kernels(dev);
    pass->config = &model->config;
    pass->shard = &model->shard;
    pass->weights = &model->weights;
    pass->parts = model->parts = mem_new_array(const double *, model->shard.world);
    pass->gathered_bytes = model->gathered_bytes = mem_new_array(int64_t, model->shard.world);
}

enum status model_load(struct device *dev, const struct model_file *file,
                       const struct model_options *options, struct model **out)
{
    AUTO_FREE(model) struct model *model = mem_new(struct model);

    model->config = *model_file_config(file);
    model->max_rows = options->max_batched_tokens;
    model->max_logit_rows = options->max_logit_rows;
    model->max_position = options->max_position;
    model->kv_type = options->kv_type;

    TRY(architecture_find(model->config.architecture, &model->architecture));
    TRY(check_config(&model->config));
    TRY(shard_init(&model->config, options->rank, options->world, &model->shard));
    ASSERT(!options->inexact_sums || options->world == 1);
    TRY(weights_load(&model->weights, dev, file, &model->shard, &model->architecture->tensors,
                     options));
    TRY(check_rope(model));

    take_workspaces(model); /* measures */
    TRY(slab_open(&model->workspaces, dev, "the workspaces of a step"));
    take_workspaces(model);
    make_pass(model, dev);
    model->pass.inexact_sums = options->inexact_sums;
    model->pass.work = options->work;
    TRY(deal_heads(model));
    TRY(fill_ropes(model));
    TRY(step_inputs_open(&model->inputs, dev,
                         &(struct step_inputs_limits){.rows = model->max_rows,
                                                      .requests = MIN(model->max_rows, model->max_logit_rows),
                                                      .logit_rows = model->max_logit_rows,
                                                      .position = model->max_position}));

    wanted_rows_open(&model->wanted_rows, model->max_logit_rows, model->max_position);
    if (device_can_record(dev) && !options->records_nothing)
        model->recordings = recordings_new(dev, MIN(model->max_rows, model->max_logit_rows), model->max_position);

    *out = give(model);
    return OK;
}

void model_free(struct model *model)
{
    if (!model)
        return;
    recordings_free(model->recordings);
    slab_close(&model->kv_cache);
    slab_close(&model->workspaces);
    step_inputs_close(&model->inputs);
    wanted_rows_close(&model->wanted_rows);
    weights_close(&model->weights);
    mem_free(model->kv);
    mem_free(model->parts);
    mem_free(model->gathered_bytes);
    mem_free(model);
}

/* ---- KV cache ---------------------------------------------------------------------------------
 */

static struct kv_layer like_of_layers(const struct model *model, int32_t num_blocks)
{
    return (struct kv_layer){
        .num_blocks = num_blocks,
        .num_kv_heads = model->shard.num_kv_heads,
        .head_dim = model->config.head_dim,
        .type = model->kv_type,
    };
}

int64_t model_kv_block_bytes(const struct model *model)
{
    struct kv_layer like = like_of_layers(model, 0);

    return kv_group_bytes(&like, model->config.num_layers) / KV_GROUP_BLOCKS;
}

enum status model_alloc_kv(struct model *model, int32_t num_blocks)
{
    ASSERT(!model->kv && num_blocks > 0);
    model->kv = mem_new_array(struct kv_layer, model->config.num_layers);
    model->inputs.spare_block = num_blocks;
    num_blocks += model->recordings != NULL;

    struct kv_layer like = like_of_layers(model, num_blocks);

    slab_take(&model->kv_cache, /* measures */
              kv_num_groups(num_blocks) * kv_group_bytes(&like, model->config.num_layers));

    enum status status = slab_open(&model->kv_cache, model->pass.dev, "the KV cache");

    if (status != OK) {
        slab_close(&model->kv_cache);
        mem_free(give(model->kv));
        return fail(status, "%s; lower --kv-cache-memory or --max-model-len", fail_text());
    }
    /* Blocks are taken in order, so a big page of them fills up before the next is touched. */
    device_expect_full(model->pass.dev, model->kv_cache.base, model->kv_cache.bytes);
    kv_place_layers(&like, model->kv_cache.base, model->config.num_layers, model->kv);
    model->pass.kv = model->kv;
    return OK;
}

void model_free_kv(struct model *model)
{
    forget_recordings(model);
    slab_close(&model->kv_cache);
    model->kv_expected = 0;
    mem_free(give(model->kv));
    model->pass.kv = NULL;
}

int64_t model_kv_bytes(const struct model *model)
{
    return model->kv_cache.bytes;
}

void model_adopt(struct model *model, struct device *dev, struct work_count *work)
{
    ASSERT(!model->kv && device_kernels(dev) == model->pass.kernels);
    model->weights.slab.dev = model->workspaces.dev = model->inputs.dev = model->pass.dev = dev;
    model->pass.work = work;
    if (model->recordings)
        recordings_adopt(model->recordings, dev);
}

void model_take_kv(struct model *model, struct model *from)
{
    ASSERT(!model->kv && model_kv_block_bytes(model) == model_kv_block_bytes(from));
    forget_recordings(model);
    forget_recordings(from);
    model->inputs.spare_block = from->inputs.spare_block;
    model->kv = give(from->kv);
    model->kv_cache = from->kv_cache;
    model->kv_expected = from->kv_expected;
    model->pass.kv = model->kv;
    from->kv_cache = (struct slab){0};
    from->pass.kv = NULL;
}

void model_read_last_tokens(struct model *model, const int32_t *last_tokens)
{
    model->last_tokens = last_tokens;
}

/* ---- a step --------------------------------------------------------------------------------- */

static int32_t last_position(const struct batch_view *batch)
{
    int32_t last = 0;

    for (int32_t i = 0; i < batch->rows; i++)
        last = MAX(last, batch->positions[i]);
    return last;
}

/* Does every request have one row, which samples? And does the host meet nobody on the way, nor show the
 * residual? */
static bool can_be_recorded(const struct model *model, const struct model_step *step, struct recording_sizes *sizes)
{
    const struct batch_view *batch = &step->batch;

    if (!model->recordings || !comm_can_record(model->pass.comm) || model->pass.observer ||
        batch->rows != batch->num_requests || batch->rows != step->num_logit_rows)
        return false;
    return recordings_round_up(model->recordings, batch->rows, batch->max_position, sizes);
}

/* Puts the arrays of a step where the pass reads them, of these sizes if they are not NULL. */
static enum status place(struct model *model, const struct model_step *step, const struct recording_sizes *sizes)
{
    struct pass *pass = &model->pass;
    bool narrows = step->num_logit_rows < step->batch.rows && !step->keeps_rows && !pass->observer;

    pass->ids = step->ids;
    pass->logit_rows = step->logit_rows;
    pass->num_logit_rows = sizes ? sizes->rows : step->num_logit_rows;
    pass->wanted = narrows ? &model->wanted : NULL;
    model->batch = step->batch;
    if (narrows)
        wanted_rows_find(&model->wanted_rows, &step->batch, step->logit_rows, step->num_logit_rows, &model->wanted);
    TRY(step_inputs_put(&model->inputs, &model->batch, &pass->ids, model->last_tokens, sizes));
    if (narrows)
        TRY(step_inputs_put_batch(&model->inputs, &model->wanted));
    TRY(step_inputs_put_rows(&model->inputs, &pass->logit_rows, step->num_logit_rows, pass->num_logit_rows));
    pass_begin(pass, &model->batch, &pass->all);
    return OK;
}

static int32_t last_block_written(const struct batch_view *batch)
{
    int32_t last = 0;

    for (int32_t i = 0; i < batch->num_requests; i++) {
        const int32_t *blocks = batch->block_tables + (int64_t)i * batch->block_table_stride;

        for (int32_t row = batch->row_start[i]; row < batch->row_start[i + 1]; row++)
            last = MAX(last, blocks[batch->positions[row] / KV_BLOCK_TOKENS]);
    }
    return last;
}

/* Blocks are handed out in order until all have been used once, so what the next step writes is in the groups after
 * those of this one: as many as a step can fill. */
static void expect_next_step(struct model *model, const struct batch_view *batch)
{
    int64_t group_bytes = kv_group_bytes(model->kv, model->config.num_layers);
    int64_t first = (last_block_written(batch) / KV_GROUP_BLOCKS + 1) * group_bytes;
    int64_t ahead = divide_up(model->max_rows, KV_BLOCK_TOKENS * KV_GROUP_BLOCKS) * group_bytes;
    int64_t end = MIN(first + ahead, model->kv_cache.bytes);

    if (end <= model->kv_expected)
        return;
    model->kv_expected = end;
    if (first < end)
        device_expect_soon(model->pass.dev, model->kv_cache.base + first, end - first);
}

static enum status record(struct model *model, struct device_recording **out)
{
    struct device *dev = model->pass.dev;
    enum status status, ended;

    TRY(comm_record(model->pass.comm, dev));
    status = model->architecture->forward(&model->pass);
    ended = comm_end_record(model->pass.comm, dev, out);
    if (status == OK || ended != OK)
        return ended;
    device_recording_free(dev, *out);
    return status;
}

/* The pass as it was placed. Where that fails for one rank, and all else goes on, it is the last attempt of all, and
 * *out is NULL. */
static enum status add_recording(struct model *model, const struct recording_sizes *sizes,
                                 struct device_recording **out)
{
    struct device_recording *recording = NULL;
    bool is_made = record(model, &recording) == OK, is_made_by_all;
    AUTO_MEM char *why = NULL;

    *out = NULL;
    if (!is_made) {
        why = mem_strdup(fail_text());
        recording = NULL;
        TRY(comm_check(model->pass.comm));
        TRY(device_check(model->pass.dev));
    }
    TRY(comm_agree(model->pass.comm, is_made, &is_made_by_all));
    if (is_made_by_all) {
        recordings_add(model->recordings, sizes, recording);
        *out = recording;
        return OK;
    }
    device_recording_free(model->pass.dev, recording);
    log_warn("no more passes are recorded, as one of %d rows up to position %d could not be: %s", sizes->rows,
             sizes->position, why ? why : "another rank has failed");
    model->keeps_to_launches = true;
    return OK;
}

static enum status replay(struct model *model, const struct recording_sizes *sizes)
{
    struct device_recording *recording = recordings_find(model->recordings, sizes);
    struct work_count *work = model->pass.work;

    if (!recording && !model->keeps_to_launches) {
        int64_t start_ns = clock_now_ns();

        TRY(add_recording(model, sizes, &recording));
        if (recording) {
            work_count_pass(work, num_recorded_later);
            log_debug("a pass of %d rows up to position %d is recorded, in %.1f ms", sizes->rows, sizes->position,
                      clock_ms(clock_now_ns() - start_ns));
        }
    }
    if (!recording) {
        work_count_pass(work, num_launched);
        return model->architecture->forward(&model->pass);
    }
    work_count_pass(work, num_replayed);
    work_count_add(work);
    return comm_replay(model->pass.comm, model->pass.dev, recording);
}

/* Where logits go: recordings write to where they went before. */
static void set_logits(struct model *model, float *logits_out)
{
    if (logits_out != model->pass.logits_out)
        forget_recordings(model);
    model->pass.logits_out = logits_out;
}

enum status model_forward(struct model *model, const struct model_step *given)
{
    struct model_step step = *given;
    struct recording_sizes sizes;

    ASSERT(model->pass.kv, "model_alloc_kv comes first");
    ASSERT(step.batch.rows > 0 && step.batch.rows <= model->max_rows, "%d rows", step.batch.rows);
    ASSERT(step.num_logit_rows >= 0 && step.num_logit_rows <= model->max_logit_rows, "%d logit rows",
           step.num_logit_rows);
    set_logits(model, step.logits_out);
    if (device_has_own_memory(model->pass.dev))
        step.batch.max_position = last_position(&step.batch);
    if (can_be_recorded(model, &step, &sizes)) {
        TRY(place(model, &step, &sizes));
        return replay(model, &sizes);
    }
    TRY(place(model, &step, NULL));
    work_count_pass(model->pass.work, num_launched);
    TRY(model->architecture->forward(&model->pass));
    expect_next_step(model, &given->batch);
    return OK;
}

/* A step of one row that is nobody's: what is added to come to these sizes is the same. */
static enum status place_nobody(struct model *model, const struct recording_sizes *sizes)
{
    const struct model_step step = {
        .batch = {.rows = 1,
                  .num_requests = 1,
                  .row_start = (int32_t[]){0, 1},
                  .positions = (int32_t[]){0},
                  .block_tables = &model->inputs.spare_block,
                  .block_table_stride = 1},
        .ids = (int32_t[]){0},
        .logit_rows = (int32_t[]){0},
        .num_logit_rows = 1,
    };

    return place(model, &step, sizes);
}

enum status model_record(struct model *model, float *logits_out)
{
    int64_t start_ns = clock_now_ns(), end_ns = clock_deadline_ns(RECORD_FIRST_MS);
    const struct pass *pass = &model->pass;
    struct recording_sizes sizes;
    bool goes_on;
    int32_t count = 0;

    if (!model->recordings || !comm_can_record(pass->comm) || (model->shard.world > 1 && !pass->comm))
        return OK;
    ASSERT(pass->kv, "model_alloc_kv comes first");
    set_logits(model, logits_out);
    for (int32_t i = 0; recordings_usual(model->recordings, i, &sizes); i++) {
        struct device_recording *recording;

        if (recordings_find(model->recordings, &sizes))
            continue;
        TRY(comm_agree(pass->comm, clock_now_ns() < end_ns, &goes_on));
        if (!goes_on)
            break;
        TRY(place_nobody(model, &sizes));
        TRY(add_recording(model, &sizes, &recording));
        if (!recording)
            break;
        work_count_pass(pass->work, num_recorded_first);
        count++;
    }
    if (count > 0)
        log_info("%d passes are recorded, of steps that only decode, in %.0f ms", count,
                 clock_ms(clock_now_ns() - start_ns));
    return OK;
}

enum status model_logits(struct model *model, const int32_t *logit_rows, int32_t num_logit_rows,
                         float *logits_out)
{
    struct pass *pass = &model->pass;

    ASSERT(num_logit_rows >= 0 && num_logit_rows <= model->max_logit_rows, "%d logit rows",
           num_logit_rows);
    ASSERT(!pass->wanted, "the last step has kept some rows alone");
    TRY(step_inputs_put_rows(&model->inputs, &logit_rows, num_logit_rows, num_logit_rows));
    pass->logit_rows = logit_rows;
    pass->num_logit_rows = num_logit_rows;
    pass->logits_out = logits_out;
    embedding_logits(pass);
    return OK;
}

void model_observe(struct model *model, model_observer *observer, void *user)
{
    model->pass.observer = observer;
    model->pass.observer_user = user;
}

const struct shard *model_shard(const struct model *model)
{
    return &model->shard;
}

int64_t model_weight_bytes(const struct model *model)
{
    return model->weights.slab.bytes;
}

int64_t model_step_weight_bytes(const struct model *model)
{
    const struct weights *weights = &model->weights;
    bool is_tied = weights->output.num_matrices == 0;

    return weights->slab.bytes - (is_tied ? 0 : linear_bytes(&weights->embedding, model->pass.dev));
}

int64_t model_workspace_bytes(const struct model *model)
{
    return model->workspaces.bytes;
}

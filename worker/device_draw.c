#include "worker/device_draw.h"

#include "proto/base/memory.h"
#include "proto/base/rounding.h"

#include <string.h>

enum { NUM_STEPS = 2, GATHERED_ROWS = 32 };

struct device_draw {
    struct device *dev;
    struct device_draw_limits limits; /* first_tokens are its own */
    int32_t num_tokens; /* the whole vocabulary */
    int32_t words;      /* of a mask: of this rank's slice */
    struct device_mirror draws[NUM_STEPS]; /* struct draw_row: [limits.rows]; then their masks */
    struct device_mirror drawn[NUM_STEPS]; /* int32_t: [limits.rows]; kernels write the host's */
    int32_t *last_tokens; /* the device's: [limits.slots] */
    float *gathered;      /* the device's: [GATHERED_ROWS, num_tokens]; NULL: this rank has all logits */
};

static int64_t slots_bytes(const struct device_draw *draw)
{
    return draw->limits.slots * (int64_t)sizeof(int32_t);
}

static int64_t draws_bytes(const struct device_draw *draw)
{
    return draw->limits.rows * (int64_t)sizeof(struct draw_row);
}

static int64_t mask_bytes(const struct device_draw *draw)
{
    return draw->words * (int64_t)sizeof(uint32_t);
}

static int64_t gathered_bytes(const struct device_draw *draw)
{
    return GATHERED_ROWS * draw->num_tokens * (int64_t)sizeof(float);
}

static int32_t first_token(const struct device_draw *draw)
{
    return draw->limits.first_tokens[draw->limits.rank];
}

static int32_t end_token(const struct device_draw *draw)
{
    return draw->limits.first_tokens[draw->limits.rank + 1];
}

static enum status alloc(struct device_draw *draw)
{
    int64_t rows = draw->limits.rows;
    void *p;

    for (int i = 0; i < NUM_STEPS; i++) {
        TRY(device_mirror_open(draw->dev, draws_bytes(draw) + rows * mask_bytes(draw), "what is drawn",
                               &draw->draws[i]));
        TRY(device_mirror_open(draw->dev, rows * (int64_t)sizeof(int32_t), "tokens that are drawn", &draw->drawn[i]));
    }
    TRY(device_alloc(draw->dev, slots_bytes(draw), "last tokens", &p));
    draw->last_tokens = p;
    if (draw->limits.world == 1)
        return OK;
    TRY(device_alloc(draw->dev, gathered_bytes(draw), "logits of all ranks", &p));
    draw->gathered = p;
    return OK;
}

enum status device_draw_new(struct device *dev, const struct device_draw_limits *limits, struct device_draw **out)
{
    AUTO_FREE(device_draw) struct device_draw *draw = mem_new(struct device_draw);
    int32_t *first_tokens = mem_new_array(int32_t, limits->world + 1);

    ASSERT(device_has_own_memory(dev) && device_kernels(dev)->draw_rows);
    draw->dev = dev;
    draw->limits = *limits;
    memcpy(first_tokens, limits->first_tokens, (size_t)(limits->world + 1) * sizeof *first_tokens);
    draw->limits.first_tokens = first_tokens;
    draw->num_tokens = first_tokens[limits->world];
    draw->words = divide_up(end_token(draw), 32) - first_token(draw) / 32;
    TRY(alloc(draw));
    *out = give(draw);
    return OK;
}

void device_draw_free(struct device_draw *draw)
{
    if (!draw)
        return;
    for (int i = 0; i < NUM_STEPS; i++) {
        device_mirror_close(draw->dev, &draw->draws[i]);
        device_mirror_close(draw->dev, &draw->drawn[i]);
    }
    device_free(draw->dev, draw->last_tokens, slots_bytes(draw));
    device_free(draw->dev, draw->gathered, gathered_bytes(draw));
    mem_free((int32_t *)draw->limits.first_tokens);
    mem_free(draw);
}

/* Rows that are drawn at once. */
static int32_t most_rows(const struct device_draw *draw, const struct comm *comm)
{
    if (draw->limits.world == 1)
        return draw->limits.rows;
    return comm ? MIN(comm_columns_max(comm, draw->limits.first_tokens), (int32_t)GATHERED_ROWS) : 0;
}

bool device_draw_can_meet(const struct device_draw *draw, const struct comm *comm)
{
    return most_rows(draw, comm) > 0;
}

bool device_draw_can(const struct sampler_row *rows, int32_t num_rows)
{
    for (int32_t i = 0; i < num_rows; i++)
        if (rows[i].params->logprobs >= 0 || logit_edits_are_more_than_a_mask(&rows[i]))
            return false;
    return true;
}

static struct draw_row draw_row_of(const struct sampler_row *row, int32_t slot, int32_t mask)
{
    const struct sampling_params *params = row->params;

    return (struct draw_row){
        .temperature = sampling_params_is_greedy(params) ? 0 : params->temperature,
        .top_p = params->top_p,
        .min_p = params->min_p,
        .top_k = MAX(params->top_k, 0),
        .seed = (uint64_t)params->seed,
        .position = row->position,
        .mask = mask,
        .slot = slot,
    };
}

/* What the device is to know of the rows of a step, in its mirror; and how many masks there are. */
static enum status put_rows(struct device_draw *draw, const struct device_mirror *mirror,
                            const struct sampler_row *rows, const int32_t *slots, int32_t num_rows,
                            int32_t *num_masks_out)
{
    struct draw_row *draws = (struct draw_row *)mirror->host;
    char *masks = mirror->host + draws_bytes(draw);
    int32_t num_masks = 0;

    ASSERT(num_rows <= draw->limits.rows, "%d rows", num_rows);
    for (int32_t i = 0; i < num_rows; i++) {
        ASSERT(slots[i] >= 0 && slots[i] < draw->limits.slots, "slot %d", slots[i]);
        draws[i] = draw_row_of(&rows[i], slots[i], rows[i].bitmask ? num_masks : -1);
        if (rows[i].bitmask)
            memcpy(masks + num_masks++ * mask_bytes(draw), rows[i].bitmask, (size_t)mask_bytes(draw));
    }
    *num_masks_out = num_masks;
    return device_mirror_push(draw->dev, mirror, draws_bytes(draw) + num_masks * mask_bytes(draw));
}

/* Draws some rows of args, whose logits are this rank's. */
static enum status draw_piece(struct device_draw *draw, struct comm *comm, struct draw_rows_args args,
                              int32_t first, int32_t rows)
{
    args.logits += (int64_t)first * (end_token(draw) - first_token(draw));
    args.draws += first;
    args.drawn += first;
    args.rows = rows;
    if (draw->gathered) {
        TRY(comm_gather_columns(comm, &(struct comm_columns){.rows = rows,
                                                             .first = draw->limits.first_tokens,
                                                             .own = args.logits,
                                                             .out = draw->gathered}));
        args.logits = draw->gathered;
        args.masks = NULL; /* -inf by now */
    }
    device_kernels(draw->dev)->draw_rows(draw->dev, &args);
    return OK;
}

enum status device_draw_launch(struct device_draw *draw, struct comm *comm, int64_t step, float *logits,
                               const struct sampler_row *rows, const int32_t *slots, int32_t num_rows)
{
    const struct device_mirror *mirror = &draw->draws[step & 1];
    struct draw_rows_args args = {
        .num_tokens = draw->num_tokens,
        .logits = logits,
        .draws = (struct draw_row *)mirror->device,
        .masks = (uint32_t *)(mirror->device + draws_bytes(draw)),
        .words = draw->words,
        .drawn = (int32_t *)draw->drawn[step & 1].host,
        .last_tokens = draw->last_tokens,
    };
    int32_t most = most_rows(draw, comm), num_masks;

    TRY(put_rows(draw, mirror, rows, slots, num_rows, &num_masks));
    if (draw->gathered && num_masks > 0)
        device_kernels(draw->dev)->mask_rows(draw->dev, &(struct mask_rows_args){
                                                            .rows = num_rows,
                                                            .first_token = first_token(draw),
                                                            .num_tokens = end_token(draw) - first_token(draw),
                                                            .logits = logits,
                                                            .draws = args.draws,
                                                            .masks = args.masks,
                                                            .words = draw->words,
                                                        });
    for (int32_t first = 0; first < num_rows; first += most)
        TRY(draw_piece(draw, comm, args, first, MIN(most, num_rows - first)));
    return OK;
}

const int32_t *device_draw_tokens(const struct device_draw *draw, int64_t step)
{
    return (int32_t *)draw->drawn[step & 1].host;
}

const int32_t *device_draw_last_tokens(const struct device_draw *draw)
{
    return draw->last_tokens;
}

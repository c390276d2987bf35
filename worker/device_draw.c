#include "worker/device_draw.h"

#include "proto/base/memory.h"

#include <string.h>

enum { NUM_STEPS = 2 };

struct device_draw {
    struct device *dev;
    struct device_draw_limits limits;
    int32_t words; /* of a mask */
    struct device_mirror draws[NUM_STEPS]; /* struct draw_row: [limits.rows]; then their masks */
    struct device_mirror drawn[NUM_STEPS]; /* int32_t: [limits.rows]; kernels write the host's */
    int32_t *last_tokens; /* the device's: [limits.slots] */
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
    return OK;
}

enum status device_draw_new(struct device *dev, const struct device_draw_limits *limits, struct device_draw **out)
{
    AUTO_FREE(device_draw) struct device_draw *draw = mem_new(struct device_draw);

    ASSERT(device_has_own_memory(dev) && device_kernels(dev)->draw_rows);
    draw->dev = dev;
    draw->limits = *limits;
    draw->words = (limits->num_tokens + 31) / 32;
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
    mem_free(draw);
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

enum status device_draw_launch(struct device_draw *draw, int64_t step, const float *logits,
                               const struct sampler_row *rows, const int32_t *slots, int32_t num_rows)
{
    const struct device_mirror *mirror = &draw->draws[step & 1];
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
    TRY(device_mirror_push(draw->dev, mirror, draws_bytes(draw) + num_masks * mask_bytes(draw)));
    device_kernels(draw->dev)->draw_rows(draw->dev, &(struct draw_rows_args){
                                                        .rows = num_rows,
                                                        .num_tokens = draw->limits.num_tokens,
                                                        .logits = logits,
                                                        .draws = (struct draw_row *)mirror->device,
                                                        .masks = (uint32_t *)(mirror->device + draws_bytes(draw)),
                                                        .words = draw->words,
                                                        .drawn = (int32_t *)draw->drawn[step & 1].host,
                                                        .last_tokens = draw->last_tokens,
                                                    });
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

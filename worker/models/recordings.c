#include "worker/models/recordings.h"

#include "proto/base/memory.h"

enum {
    MAX_RECORDINGS = 64,
    MAX_RECORDED_ROWS = 512,
    TILE_POSITIONS = 256, /* attention's tiles */
};

struct recordings {
    struct device *dev;
    int32_t max_rows, max_position;
    int64_t clock; /* counts uses */
    int32_t count;
    struct entry {
        struct recording_sizes sizes;
        struct device_recording *recording;
        int64_t last_use;
    } entries[MAX_RECORDINGS];
};

struct recordings *recordings_new(struct device *dev, int32_t max_rows, int32_t max_position)
{
    struct recordings *recordings = mem_new(struct recordings);

    recordings->dev = dev;
    recordings->max_rows = MIN(max_rows, (int32_t)MAX_RECORDED_ROWS);
    recordings->max_position = max_position;
    return recordings;
}

void recordings_forget(struct recordings *recordings)
{
    for (int32_t i = 0; i < recordings->count; i++)
        device_recording_free(recordings->dev, recordings->entries[i].recording);
    recordings->count = 0;
}

void recordings_free(struct recordings *recordings)
{
    if (!recordings)
        return;
    recordings_forget(recordings);
    mem_free(recordings);
}

void recordings_adopt(struct recordings *recordings, struct device *dev)
{
    ASSERT(recordings->count == 0);
    recordings->dev = dev;
}

/* 1, 2, 4, then multiples of 8. */
static int32_t round_rows(int32_t rows)
{
    if (rows <= 2)
        return rows;
    return rows <= 4 ? 4 : (rows + 7) / 8 * 8;
}

bool recordings_round_up(const struct recordings *recordings, int32_t rows, int32_t position,
                         struct recording_sizes *out)
{
    int32_t tiles = 1;

    while (tiles * TILE_POSITIONS <= position)
        tiles *= 2;
    *out = (struct recording_sizes){
        .rows = round_rows(rows),
        .position = MIN(tiles * TILE_POSITIONS, recordings->max_position) - 1,
    };
    return out->rows <= recordings->max_rows;
}

struct device_recording *recordings_find(struct recordings *recordings, const struct recording_sizes *sizes)
{
    for (int32_t i = 0; i < recordings->count; i++) {
        struct entry *entry = &recordings->entries[i];

        if (entry->sizes.rows != sizes->rows || entry->sizes.position != sizes->position)
            continue;
        entry->last_use = ++recordings->clock;
        return entry->recording;
    }
    return NULL;
}

void recordings_add(struct recordings *recordings, const struct recording_sizes *sizes,
                    struct device_recording *recording)
{
    struct entry *oldest = &recordings->entries[0];

    for (int32_t i = 1; i < recordings->count; i++)
        if (recordings->entries[i].last_use < oldest->last_use)
            oldest = &recordings->entries[i];
    if (recordings->count < MAX_RECORDINGS)
        oldest = &recordings->entries[recordings->count++];
    else
        device_recording_free(recordings->dev, oldest->recording);
    *oldest = (struct entry){*sizes, recording, ++recordings->clock};
}

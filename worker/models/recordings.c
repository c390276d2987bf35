#include "worker/models/recordings.h"

#include "proto/base/memory.h"
#include "proto/base/rounding.h"

enum {
    MAX_RECORDINGS = 64,
    MAX_RECORDED_ROWS = 512,
    TILE_POSITIONS = 256, /* attention's tiles */
};

struct recordings {
    struct device *dev;
    int32_t max_rows, max_position;
    struct recording_sizes usual[MAX_RECORDINGS];
    int32_t num_usual;
    int64_t clock; /* counts uses */
    int32_t count;
    struct entry {
        struct recording_sizes sizes;
        struct device_recording *recording;
        int64_t last_use;
    } entries[MAX_RECORDINGS];
};

/* 1, 2, 4, then multiples of 8; or all that there can be. */
static int32_t round_rows(const struct recordings *recordings, int32_t rows)
{
    int32_t rounded = rows <= 2 ? rows : rows <= 4 ? 4 : divide_up(rows, 8) * 8;

    return MIN(rounded, recordings->max_rows);
}

/* As many tiles as are a power of two; or all that there can be. */
static int32_t round_position(const struct recordings *recordings, int32_t position)
{
    int32_t tiles = 1;

    while (tiles * TILE_POSITIONS <= position)
        tiles *= 2;
    return MIN(tiles * TILE_POSITIONS, recordings->max_position) - 1;
}

static bool is_landmark(const struct recordings *recordings, int32_t rows)
{
    return (rows & (rows - 1)) == 0 || rows == recordings->max_rows;
}

/* Every number of rows with positions up to this one: powers of two, or the rest. */
static void list_usual_rows(struct recordings *recordings, int32_t position, bool landmarks)
{
    for (int32_t rows = 1; rows <= recordings->max_rows; rows = round_rows(recordings, rows + 1)) {
        if (is_landmark(recordings, rows) == landmarks && recordings->num_usual < MAX_RECORDINGS)
            recordings->usual[recordings->num_usual++] = (struct recording_sizes){rows, position};
        if (rows == recordings->max_rows)
            break;
    }
}

/* Short requests before long ones, and powers of two before what lies between them. */
static void list_usual(struct recordings *recordings)
{
    int32_t last = recordings->max_position - 1;

    for (int landmarks = 1; landmarks >= 0; landmarks--)
        for (int32_t position = -1; position < last;) {
            position = round_position(recordings, position + 1);
            list_usual_rows(recordings, position, landmarks);
        }
}

struct recordings *recordings_new(struct device *dev, int32_t max_rows, int32_t max_position)
{
    struct recordings *recordings = mem_new(struct recordings);

    recordings->dev = dev;
    recordings->max_rows = MIN(max_rows, (int32_t)MAX_RECORDED_ROWS);
    recordings->max_position = max_position;
    list_usual(recordings);
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

bool recordings_round_up(const struct recordings *recordings, int32_t rows, int32_t position,
                         struct recording_sizes *out)
{
    *out = (struct recording_sizes){round_rows(recordings, rows), round_position(recordings, position)};
    return rows <= recordings->max_rows;
}

bool recordings_usual(const struct recordings *recordings, int32_t i, struct recording_sizes *out)
{
    if (i >= recordings->num_usual)
        return false;
    *out = recordings->usual[i];
    return true;
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

/* What comes from an agent, or from a launcher: the first byte says from whom. Read at once and
 * bytewise it must be the same; what is read can be written, and is no larger than allowed. */
#include "engine/launch/parcel.h"

#include <string.h>

static void check(const struct parcel *parcel)
{
    ASSERT(parcel->process >= PARCEL_ALL && parcel->process < PARCEL_MAX_PROCESS);
    ASSERT(parcel->num_words <= PARCEL_MAX_WORDS && parcel->num_variables <= PARCEL_MAX_WORDS);
    ASSERT(parcel->kind != PARCEL_START || parcel->num_words > 0);
    for (int32_t i = 0; i < parcel->num_words; i++)
        ASSERT(!parcel->words[i].size ||
               !memchr(parcel->words[i].data, '\0', parcel->words[i].size));
}

static enum status read_all(const uint8_t *data, size_t size, size_t step, bool is_from_agent,
                            struct bytes *out)
{
    AUTO_CLOSE(parcel_reader) struct parcel_reader reader = {0};

    for (size_t at = 0; at < size; at += step) {
        struct parcel parcel;
        bool found = true;

        parcel_reader_add(&reader, data + at, MIN(step, size - at));
        while (found) {
            TRY(parcel_reader_next(&reader, is_from_agent, &parcel, &found));
            if (!found)
                break;
            check(&parcel);
            parcel_write(out, &parcel);
        }
    }
    return OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    AUTO_CLOSE(bytes) struct bytes whole = {0};
    AUTO_CLOSE(bytes) struct bytes bytewise = {0};

    if (size == 0)
        return 0;
    bool is_from_agent = data[0] & 1;
    enum status status = read_all(data + 1, size - 1, size, is_from_agent, &whole);

    ASSERT(status == read_all(data + 1, size - 1, 1, is_from_agent, &bytewise));
    ASSERT(whole.size == bytewise.size &&
           (!whole.size || !memcmp(whole.data, bytewise.data, whole.size)));
    return 0;
}

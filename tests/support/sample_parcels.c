#include "tests/support/sample_parcels.h"

void sample_parcels_write(bool is_from_agent, struct bytes *out)
{
    static const struct text words[] = {{"tandem", 6}, {"worker", 6}, {"", 0}};
    static const struct text variables[] = {{"TANDEM_RANK=3", 13}};
    const struct parcel launcher[] = {
        {.kind = PARCEL_JOB, .number = 7, .text = {"a\0b", 3}, .other = text_of("0123abc")},
        {.kind = PARCEL_START,
         .process = 4,
         .number = 3,
         .text = text_of("/usr"),
         .words = words,
         .num_words = 3,
         .variables = variables,
         .num_variables = 1,
         .binding = {BIND_CORE, MAP_NUMA, 2},
         .local_rank = 1,
         .local_world = 2},
        {.kind = PARCEL_SIGNAL, .process = PARCEL_ALL, .number = 15},
        {.kind = PARCEL_INPUT, .process = 0, .text = text_of("line\n")},
        {.kind = PARCEL_TAKEN, .number = 70000},
        {.kind = PARCEL_PAUSE},
        {.kind = PARCEL_QUIT, .number = 5000},
        {.kind = PARCEL_ADDRESS, .text = text_of("tcp://10.0.0.1:4000")},
        {.kind = PARCEL_BEAT},
    };
    const struct parcel agent[] = {
        {.kind = PARCEL_HELLO, .number = 77, .text = text_of("node1"), .other = text_of("0123abc")},
        {.kind = PARCEL_STARTED, .process = 1, .number = 78, .text = text_of("core 1 (cpus 1)")},
        {.kind = PARCEL_REFUSED,
         .process = 2,
         .number = 127,
         .text = text_of("no program x in PATH")},
        {.kind = PARCEL_OUTPUT, .process = 1, .number = 2, .text = text_of("one\ntwo\n")},
        {.kind = PARCEL_NOTICE, .process = 1, .number = 15, .text = text_of("load 62 %")},
        {.kind = PARCEL_ENDED, .process = 1, .number = 9},
        {.kind = PARCEL_INPUT_TAKEN, .process = 1},
        {.kind = PARCEL_FAULT, .text = text_of("no run directory")},
        {.kind = PARCEL_ADDRESS, .text = text_of("ipc:///run/x")},
        {.kind = PARCEL_BEAT},
    };
    const struct parcel *all = is_from_agent ? agent : launcher;

    for (size_t i = 0; i < (is_from_agent ? COUNT_OF(agent) : COUNT_OF(launcher)); i++)
        parcel_write(out, &all[i]);
}

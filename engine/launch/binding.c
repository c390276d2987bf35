#include "engine/launch/binding.h"

#include "proto/base/memory.h"

#include <hwloc.h>
#include <hwloc/glibc-sched.h>
#include <stdio.h>

static const struct {
    const char *name;
    hwloc_obj_type_t type;
} levels[NUM_BIND_TO] = {
    [BIND_NONE] = {"nothing", HWLOC_OBJ_MACHINE},
    [BIND_CORE] = {"core", HWLOC_OBJ_CORE},
    [BIND_SOCKET] = {"socket", HWLOC_OBJ_PACKAGE},
    [BIND_NUMA] = {"NUMA node", HWLOC_OBJ_NUMANODE},
};

/* ---- what there is --------------------------------------------------------------------------- */

struct place {
    hwloc_cpuset_t cpus; /* owned */
    int32_t index;       /* as hwloc counts them */
    int32_t group;       /* the socket or node that it is in */
};

struct places {
    struct place *places; /* [count] */
    int32_t count;
};

static void places_close(struct places *places)
{
    for (int32_t i = 0; i < places->count; i++)
        hwloc_bitmap_free(places->places[i].cpus);
    mem_free(places->places);
}

static enum status load(const char *synthetic, hwloc_topology_t topology)
{
    if (synthetic && hwloc_topology_set_synthetic(topology, synthetic) != 0)
        return fail(ERR_INVALID, "no machine is '%s'", synthetic);
    hwloc_topology_set_cache_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_NONE);
    /* As proto/base/cpus.c: it would visit every CPU, and wait for those that others use. */
    hwloc_topology_set_components(topology, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "x86");
    return hwloc_topology_load(topology) == 0
               ? OK
               : fail(ERR_IO, "hwloc can't tell what cores there are: %m");
}

/* The CPUs that this process may use. */
static hwloc_cpuset_t find_allowed(hwloc_topology_t topology, bool is_synthetic)
{
    hwloc_cpuset_t allowed = hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(topology));
    cpu_set_t mask;

    if (!is_synthetic && sched_getaffinity(0, sizeof mask, &mask) == 0) {
        hwloc_cpuset_t ours = hwloc_bitmap_alloc();

        hwloc_cpuset_from_glibc_sched_affinity(topology, ours, &mask, sizeof mask);
        hwloc_bitmap_and(allowed, allowed, ours);
        hwloc_bitmap_free(ours);
    }
    return allowed;
}

/* Which object of this type holds these CPUs. */
static int32_t find_group(hwloc_topology_t topology, hwloc_obj_type_t type,
                          hwloc_const_cpuset_t cpus)
{
    hwloc_obj_t object = NULL;

    while ((object = hwloc_get_next_obj_by_type(topology, type, object)))
        if (object->cpuset && hwloc_bitmap_intersects(object->cpuset, cpus))
            return (int32_t)object->logical_index;
    return 0;
}

/* Machines that do not say what their cores or sockets are have hardware threads, and are one. */
static hwloc_obj_type_t find_type(hwloc_topology_t topology, enum bind_to bind_to)
{
    if (hwloc_get_nbobjs_by_type(topology, levels[bind_to].type) > 0)
        return levels[bind_to].type;
    return bind_to == BIND_CORE ? HWLOC_OBJ_PU : HWLOC_OBJ_MACHINE;
}

static void find_places(hwloc_topology_t topology, const struct binding *binding,
                        hwloc_const_cpuset_t allowed, struct places *out)
{
    hwloc_obj_type_t type = find_type(topology, binding->bind_to);
    hwloc_obj_type_t group = binding->map_by == MAP_NUMA ? HWLOC_OBJ_NUMANODE : HWLOC_OBJ_PACKAGE;
    hwloc_obj_t object = NULL;

    out->places = mem_new_array(struct place, (size_t)hwloc_get_nbobjs_by_type(topology, type));
    while ((object = hwloc_get_next_obj_by_type(topology, type, object))) {
        hwloc_cpuset_t cpus = hwloc_bitmap_dup(object->cpuset);

        hwloc_bitmap_and(cpus, cpus, allowed);
        if (hwloc_bitmap_iszero(cpus)) {
            hwloc_bitmap_free(cpus);
            continue;
        }
        out->places[out->count++] =
            (struct place){cpus, (int32_t)object->logical_index, find_group(topology, group, cpus)};
    }
}

/* Cores one group after the other: the first of each, then the second of each. */
static void deal(struct places *places)
{
    struct place *dealt = mem_new_array(struct place, (size_t)places->count);
    int32_t n = 0;

    for (int32_t turn = 0; n < places->count; turn++) {
        int32_t last_group = -1, seen = 0;

        for (int32_t i = 0; i < places->count; i++) {
            seen = places->places[i].group == last_group ? seen + 1 : 0;
            last_group = places->places[i].group;
            if (seen == turn)
                dealt[n++] = places->places[i];
        }
    }
    mem_free(places->places);
    places->places = dealt;
}

/* ---- one rank -------------------------------------------------------------------------------- */

/* Sockets and nodes are shared by as many ranks as there are for them; a core is one rank's. */
static enum status choose(const struct binding *binding, const struct places *places,
                          int32_t local_rank, int32_t local_world, hwloc_cpuset_t cpus, char *text)
{
    int32_t each = binding->bind_to == BIND_CORE ? binding->cores_per_rank : 1;
    int64_t wanted = (int64_t)each * local_world;
    AUTO_CLOSE(bytes) struct bytes words = {0};

    if (binding->bind_to == BIND_CORE && wanted > places->count)
        return fail(ERR_INVALID,
                    "--bind-to core: %d ranks with %d cores each want %lld cores, %d are here",
                    local_world, each, (long long)wanted, places->count);
    bytes_printf(&words, "%s", levels[binding->bind_to].name);
    for (int32_t i = 0; i < each; i++) {
        const struct place *place = &places->places[(local_rank * each + i) % places->count];

        hwloc_bitmap_or(cpus, cpus, place->cpus);
        bytes_printf(&words, "%s%d", i ? "," : " ", place->index);
    }

    char list[BINDING_MAX_TEXT];
    hwloc_bitmap_list_snprintf(list, sizeof list, cpus);
    snprintf(text, BINDING_MAX_TEXT, "%.60s (cpus %.50s)", bytes_text(&words), list);
    return OK;
}

static enum status place(hwloc_topology_t topology, const struct binding *binding,
                         const char *synthetic, int32_t local_rank, int32_t local_world,
                         cpu_set_t *cpus_out, char *text_out)
{
    AUTO_CLOSE(places) struct places places = {0};

    TRY(load(synthetic, topology));

    hwloc_cpuset_t allowed = find_allowed(topology, synthetic != NULL);
    find_places(topology, binding, allowed, &places);
    hwloc_bitmap_free(allowed);
    if (places.count == 0)
        return fail(ERR_IO, "hwloc knows no %s that we may use", levels[binding->bind_to].name);
    if (binding->bind_to == BIND_CORE &&
        (binding->map_by == MAP_SOCKET || binding->map_by == MAP_NUMA))
        deal(&places);

    hwloc_cpuset_t cpus = hwloc_bitmap_alloc();
    enum status status = choose(binding, &places, local_rank, local_world, cpus, text_out);

    if (status == OK)
        hwloc_cpuset_to_glibc_sched_affinity(topology, cpus, cpus_out, sizeof *cpus_out);
    hwloc_bitmap_free(cpus);
    return status;
}

enum status binding_place(const struct binding *binding, const char *synthetic, int32_t local_rank,
                          int32_t local_world, cpu_set_t *cpus_out,
                          char text_out[static BINDING_MAX_TEXT])
{
    hwloc_topology_t topology;

    if (hwloc_topology_init(&topology) != 0)
        return fail(ERR_NO_MEMORY, "hwloc: %m");

    enum status status =
        place(topology, binding, synthetic, local_rank, local_world, cpus_out, text_out);
    hwloc_topology_destroy(topology);
    return status;
}

#include "engine/text/special.h"

static uint32_t add_node(struct special *special, uint8_t byte)
{
    if (special->num_nodes == 0)
        special->num_nodes = 1;
    if (special->num_nodes >= special->capacity) {
        special->capacity = MAX(256, special->capacity * 2);
        special->nodes = mem_resize(special->nodes, special->capacity * sizeof *special->nodes);
    }
    special->nodes[special->num_nodes] = (struct special_node){.byte = byte, .id = -1};
    return special->num_nodes++;
}

static uint32_t find_child(const struct special *special, uint32_t parent, uint8_t byte)
{
    uint32_t node = special->nodes[parent].child;

    while (node && special->nodes[node].byte != byte)
        node = special->nodes[node].sibling;
    return node;
}

static uint32_t add_child(struct special *special, uint32_t parent, uint8_t byte)
{
    uint32_t node = add_node(special, byte);

    special->nodes[node].sibling = special->nodes[parent].child;
    special->nodes[parent].child = node;
    return node;
}

void special_add(struct special *special, const char *text, size_t size, token_id id,
                 bool is_control)
{
    if (size == 0)
        return;

    uint32_t *root = &special->roots[(uint8_t)text[0]];
    uint32_t node = *root ? *root : (*root = add_node(special, (uint8_t)text[0]));

    for (size_t i = 1; i < size; i++) {
        uint32_t child = find_child(special, node, (uint8_t)text[i]);

        node = child ? child : add_child(special, node, (uint8_t)text[i]);
    }
    if (special->nodes[node].id < 0) {
        special->nodes[node].id = id;
        special->nodes[node].is_control = is_control;
    }
}

void special_close(struct special *special)
{
    mem_free(special->nodes);
    *special = (struct special){0};
}

/* The longest token that text starts with; its size, or 0. */
static size_t longest(const struct special *special, const char *text, size_t size,
                      bool with_control, token_id *id_out)
{
    uint32_t node = special->roots[(uint8_t)text[0]];
    size_t bytes = 0;

    for (size_t i = 1; node; i++) {
        const struct special_node *here = &special->nodes[node];

        if (here->id >= 0 && (with_control || !here->is_control)) {
            *id_out = here->id;
            bytes = i;
        }
        if (i == size)
            break;
        node = find_child(special, node, (uint8_t)text[i]);
    }
    return bytes;
}

size_t special_find(const struct special *special, const char *text, size_t size, size_t from,
                    bool with_control, token_id *id_out, size_t *bytes_out)
{
    for (; from < size; from++) {
        if (!special->roots[(uint8_t)text[from]])
            continue;
        *bytes_out = longest(special, text + from, size - from, with_control, id_out);
        if (*bytes_out)
            return from;
    }
    return size;
}

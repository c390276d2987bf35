/*
 * special: finds control and user-defined tokens in a text, the longest at each place: a trie.
 *
 * Thread: frozen once the last token is added.
 */
#ifndef ENGINE_TEXT_SPECIAL_H
#define ENGINE_TEXT_SPECIAL_H

#include "engine/text/tokenizer.h"

struct special_node {
    uint32_t child;   /* first of them; 0: none */
    uint32_t sibling; /* next child of the same parent; 0: none */
    token_id id;      /* -1: no token ends here */
    uint8_t byte;
    bool is_control; /* counts only where control tokens are asked for */
};

struct special {
    struct special_node *nodes; /* owns; 0 is not used */
    uint32_t num_nodes, capacity;
    uint32_t roots[256]; /* by first byte; 0: none */
};

/* Of two tokens with one text the first added stays. Empty texts are passed over. */
void special_add(struct special *special, const char *text, size_t size, token_id id,
                 bool is_control);
void special_close(struct special *special);

/* The leftmost token in text[from..size), the longest of several; returns where it starts, or
 * `size` when there is none. */
size_t special_find(const struct special *special, const char *text, size_t size, size_t from,
                    bool with_control, token_id *id_out, size_t *bytes_out);

#endif

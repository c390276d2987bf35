/*
 * fuzz_grammar_limits: any bytes as a grammar of each kind: refused with a sentence of one line, or
 * let through to a library; and what XGrammar would drop of it.
 */
#include "engine/grammar/limits.h"
#include "engine/grammar/schema.h"
#include "engine/grammar/words.h"
#include "engine/grammar/xgrammar_schema.h"
#include "engine/text/utf8.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect_a_sentence(void)
{
    const char *sentence = fail_text();

    ASSERT(sentence[0] != '\0' && utf8_valid_bytes(sentence, strlen(sentence)) == strlen(sentence));
    for (const char *p = sentence; *p; p++)
        ASSERT((uint8_t)*p >= ' ' && *p != 0x7f, "'%s'", sentence);
}

/* The first byte is the kind. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct grammar_spec spec = {.text = (const char *)data + 1, .size = size - 1};
    json_t *json = NULL;

    if (size == 0)
        return 0;
    (void)!fail_in_words(ERR_INVALID, spec.text, spec.size);
    if (spec.size > 0 && fail_text()[0] != '\0')
        expect_a_sentence();
    spec.kind = data[0] % NUM_GRAMMAR_KINDS;
    if (limits_check(&spec, &json) != OK)
        expect_a_sentence();
    else if (spec.kind == GRAMMAR_JSON_SCHEMA && xgrammar_check_schema(json) != OK)
        expect_a_sentence();
    else if (spec.kind == GRAMMAR_STRUCTURAL_TAG &&
             xgrammar_check_structural_tag(json, false) != OK)
        expect_a_sentence();
    if (spec.kind == GRAMMAR_JSON_SCHEMA && json)
        ASSERT(schema_close_objects(json) == OK);
    json_decref(json);
    return 0;
}

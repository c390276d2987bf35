#include "tests/support/expect.h"

#include "proto/model/hf_config.h"
#include "proto/model/hf_quantization.h"
#include "proto/model/reader.h"

#include <math.h>

/* ---- config.json ------------------------------------------------------------------------------- */

#define CONFIG(of) "{\"architectures\":[\"LlamaForCausalLM\"],\"quantization_config\":" of "}"
#define FP8(more) CONFIG("{\"quant_method\":\"fp8\"" more "}")
#define COMPRESSED(more) CONFIG("{\"quant_method\":\"compressed-tensors\"" more "}")
#define GROUP(weights)                                                                             \
    COMPRESSED(",\"format\":\"float-quantized\",\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"]," \
               "\"weights\":{" weights "}}}")
#define FLOAT8 "\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"dynamic\":false"

static enum status read_text(const char *text, struct hf_quantization *out)
{
    json_auto_t *root = NULL;

    TRY(hf_config_parse(text, strlen(text), &root));
    return hf_quantization_read(root, out);
}

static void what_writers_say_of_fp8_is_read(void **state)
{
    static const struct {
        const char *config;
        int32_t block_rows, block_columns;
    } rows[] = {
        {"{}", 0, 0},
        {CONFIG("null"), 0, 0},
        {FP8(",\"activation_scheme\":\"static\",\"ignored_layers\":[\"lm_head\"]"), 0, 0},
        {FP8(",\"fmt\":\"e4m3\",\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]"), 128, 128},
        {FP8(",\"weight_block_size\":null"), 0, 0},
        {FP8(",\"weight_block_size\":[64,65536]"), 64, 65536},
        {CONFIG("{\"quant_method\":\"fbgemm_fp8\",\"activation_scale_ub\":1200.0,\"modules_to_not_convert\":[]}"),
         0, 0},
        {GROUP(FLOAT8 ",\"strategy\":\"channel\",\"block_structure\":null"), 0, 0},
        {GROUP(FLOAT8 ",\"strategy\":\"tensor\""), 0, 0},
        {GROUP(FLOAT8 ",\"strategy\":\"block\",\"block_structure\":[128,64]"), 128, 64},
        {COMPRESSED(",\"format\":\"naive-quantized\",\"sparsity_config\":{\"format\":\"dense\"},"
                    "\"transform_config\":{},\"kv_cache_scheme\":{\"num_bits\":8}"), 0, 0},
        {COMPRESSED(",\"config_groups\":{\"a\":{\"weights\":null}}"), 0, 0},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct hf_quantization got = {-1, -1};

        expect_ok(read_text(rows[i].config, &got));
        assert_int_equal(got.block_rows, rows[i].block_rows);
        assert_int_equal(got.block_columns, rows[i].block_columns);
    }
}

static void what_is_another_way_is_refused_by_name(void **state)
{
    static const struct {
        const char *config;
        enum status status;
        const char *sentence;
    } rows[] = {
        {"{", ERR_CORRUPT, "line 1, column"},
        {CONFIG("7"), ERR_CORRUPT, "quantization_config: quantization_config is 7; an object is needed"},
        {CONFIG("{}"), ERR_CORRUPT, "quantization_config: quant_method is missing"},
        {CONFIG("{\"quant_method\":7}"), ERR_CORRUPT, "quant_method is 7; a text is needed"},
        {CONFIG("{\"quant_method\":\"gptq\"}"), ERR_UNSUPPORTED,
         "quant_method is \"gptq\"; these are supported: compressed-tensors, fbgemm_fp8, fp8"},
        {FP8(",\"fmt\":\"e5m2\""), ERR_UNSUPPORTED, "fmt is \"e5m2\"; supported is e4m3"},
        {FP8(",\"activation_scheme\":\"other\""), ERR_UNSUPPORTED, "supported is dynamic, static"},
        {FP8(",\"store_dtype\":\"mxfp4\""), ERR_UNSUPPORTED, "store_dtype is \"mxfp4\"; supported is fp8"},
        {FP8(",\"weight_block_size\":128"), ERR_CORRUPT, "two numbers from 1 to 65536 are possible"},
        {FP8(",\"weight_block_size\":[128]"), ERR_CORRUPT, "weight_block_size is [128]; two numbers"},
        {FP8(",\"weight_block_size\":[128,128,1]"), ERR_CORRUPT, "two numbers from 1 to 65536 are possible"},
        {FP8(",\"weight_block_size\":[128,0]"), ERR_CORRUPT, "two numbers from 1 to 65536 are possible"},
        {FP8(",\"weight_block_size\":[-1,128]"), ERR_CORRUPT, "two numbers from 1 to 65536 are possible"},
        {FP8(",\"weight_block_size\":[128,65537]"), ERR_CORRUPT, "two numbers from 1 to 65536 are possible"},
        {FP8(",\"weight_block_size\":[\"128\",128]"), ERR_CORRUPT, "two numbers from 1 to 65536 are possible"},
        {COMPRESSED(",\"format\":\"pack-quantized\""), ERR_UNSUPPORTED,
         "format is \"pack-quantized\"; supported is float-quantized, naive-quantized, mixed-precision"},
        {COMPRESSED(",\"sparsity_config\":{\"format\":\"sparse-24-bitmask\"}"), ERR_UNSUPPORTED,
         "format is \"sparse-24-bitmask\"; supported is dense"},
        {COMPRESSED(",\"transform_config\":{\"config_groups\":{}}"), ERR_UNSUPPORTED, "none is supported"},
        {COMPRESSED(",\"config_groups\":[]"), ERR_CORRUPT, "config_groups is []; an object is needed"},
        {COMPRESSED(",\"config_groups\":{\"a\":7}"), ERR_CORRUPT,
         "config_groups, a: a group is 7; an object is needed"},
        {COMPRESSED(",\"config_groups\":{\"a\":{\"weights\":7}}"), ERR_CORRUPT,
         "weights is 7; an object is needed"},
        {GROUP("\"num_bits\":4,\"type\":\"float\""), ERR_UNSUPPORTED,
         "quantization_config: config_groups, group_0: weights have 4 bits; 8 are supported"},
        {GROUP("\"num_bits\":8,\"type\":\"int\""), ERR_UNSUPPORTED, "type is \"int\"; supported is float"},
        {GROUP("\"num_bits\":8,\"type\":\"float\",\"symmetric\":false"), ERR_UNSUPPORTED, "symmetric is false"},
        {GROUP(FLOAT8 ",\"strategy\":\"group\""), ERR_UNSUPPORTED,
         "strategy is \"group\"; supported is tensor, channel, block"},
        {COMPRESSED(",\"config_groups\":{\"a\":{\"weights\":{" FLOAT8 ",\"block_structure\":[128,128]}},"
                    "\"b\":{\"weights\":{" FLOAT8 ",\"block_structure\":[64,64]}}}"), ERR_UNSUPPORTED,
         "config_groups, b: block_structure is [64,64]; blocks of one size are supported"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct hf_quantization got = {-1, -1};

        expect_fails(read_text(rows[i].config, &got), rows[i].status, rows[i].sentence);
        assert_int_equal(got.block_rows, -1);
    }
}

/* ---- scales ------------------------------------------------------------------------------------ */

enum { ROWS = 5, COLUMNS = 7 };

static uint8_t codes[ROWS * COLUMNS];

/* Codes of ROWS x COLUMNS, and these scales; a dimension that is 0 is not there. */
static enum status take(const char *name, enum tensor_type type, int32_t num_dims, int64_t rows, int64_t columns,
                        const void *values, const struct hf_quantization *quantization, struct model_file *file)
{
    file->tensors = arena_alloc(&file->arena, 2 * sizeof *file->tensors);
    file->num_tensors = 2;
    file->tensors[0] = (struct tensor){.name = "x.weight", .type = TYPE_F8_E4M3, .num_dims = 2, .num_rows = ROWS,
                                       .num_columns = COLUMNS, .data = codes};
    file->tensors[1] = (struct tensor){.name = name, .type = type, .num_dims = num_dims, .num_rows = rows,
                                       .num_columns = columns, .data = values};
    expect_ok(model_file_index(file));
    return hf_quantization_take_scales(quantization, file);
}

static void each_code_has_the_scale_of_its_block(void **state)
{
    static const struct {
        const char *name;
        enum tensor_type type;
        int32_t num_dims;
        int64_t rows, columns;
        struct hf_quantization quantization;
        int64_t height, width; /* of the blocks that they are of */
    } rows[] = {
        {"x.weight_scale", TYPE_F32, 0, 1, 1, {0, 0}, ROWS, COLUMNS},
        {"x.weight_scale", TYPE_F32, 1, 1, 1, {0, 0}, ROWS, COLUMNS},
        {"x.weight_scale", TYPE_F32, 2, 1, 1, {2, 3}, ROWS, COLUMNS},
        {"x.weight_scale", TYPE_F32, 1, 1, ROWS, {0, 0}, 1, COLUMNS},
        {"x.weight_scale", TYPE_F32, 2, ROWS, 1, {0, 0}, 1, COLUMNS},
        {"x.weight_scale_inv", TYPE_F32, 2, 3, 3, {2, 3}, 2, 3},
        {"x.weight_scale_inv", TYPE_F32, 2, 2, 1, {4, 7}, 4, 7},
        {"x.weight_scale_inv", TYPE_F32, 2, 1, 1, {128, 128}, ROWS, COLUMNS},
        {"x.weight_scale_inv", TYPE_F32, 2, 5, 7, {1, 1}, 1, 1},
    };
    float values[ROWS * COLUMNS];

    (void)state;
    for (int i = 0; i < ROWS * COLUMNS; i++) {
        values[i] = 0.37f * (float)i;
        codes[i] = (uint8_t)(7 * i + 3);
    }
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct model_file file = {.map.bytes = 200};
        int64_t across = (COLUMNS + rows[i].width - 1) / rows[i].width;

        expect_ok(take(rows[i].name, rows[i].type, rows[i].num_dims, rows[i].rows, rows[i].columns, values,
                       &rows[i].quantization, &file));
        for (int64_t row = 0; row < ROWS; row++)
            for (int64_t first = 0; first < COLUMNS; first++)
                for (int64_t end = first; end <= COLUMNS; end++) {
                    uint16_t got[COLUMNS + 1] = {0}, wanted;

                    got[end - first] = 0xabcd;
                    tensor_to_bf16(&file.tensors[0], row, first, end - first, got);
                    assert_int_equal(got[end - first], 0xabcd);
                    for (int64_t c = first; c < end; c++) {
                        float scale = values[row / rows[i].height * across + c / rows[i].width];

                        fp8_to_bf16(&codes[row * COLUMNS + c], 1, scale, &wanted);
                        assert_int_equal(got[c - first], wanted);
                    }
                }
        arena_close(&file.arena);
    }
}

static void scales_that_fit_nothing_are_refused(void **state)
{
    static const float good[] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, bad[][1] = {{-1}, {INFINITY}, {NAN}};
    static const struct {
        const char *name;
        enum tensor_type type;
        int32_t num_dims;
        int64_t rows, columns;
        struct hf_quantization quantization;
        const float *values;
        enum status status;
        const char *sentence;
        size_t file_bytes;
    } rows[] = {
        {"x.weight_scale", TYPE_F32, 1, 1, 5, {0, 0}, good, ERR_CORRUPT,
         "its scales have 20 bytes, and others have all but 19 of what the files have", 19},
        {"y.weight_scale", TYPE_F32, 0, 1, 1, {0, 0}, good, ERR_CORRUPT,
         "tensor 'x.weight': is F8_E4M3, and neither x.weight_scale_inv nor x.weight_scale is there"},
        {"x.weight_scale", TYPE_F32, 1, 1, 2, {0, 0}, good, ERR_CORRUPT,
         "tensor 'x.weight': there are 2 x 1 scales for 5 x 7 codes; 1, or one a row, are possible"},
        {"x.weight_scale", TYPE_F32, 2, 1, 5, {0, 0}, good, ERR_CORRUPT, "there are 1 x 5 scales for 5 x 7 codes"},
        {"x.weight_scale", TYPE_F32, 2, 3, 3, {0, 0}, good, ERR_CORRUPT, "there are 3 x 3 scales for 5 x 7 codes"},
        {"x.weight_scale", TYPE_F32, 2, 3, 3, {3, 2}, good, ERR_CORRUPT,
         "there are 3 x 3 scales for 5 x 7 codes; 1, one a row, or one for each 3 x 2 are possible"},
        {"x.weight_scale", TYPE_F32, 3, 1, 1, {0, 0}, good, ERR_CORRUPT, "there are 1 x 1 scales"},
        {"x.weight_scale", TYPE_F8_E4M3, 0, 1, 1, {0, 0}, good, ERR_UNSUPPORTED,
         "its scales are F8_E4M3; F32, F16 and BF16 are supported"},
        {"x.weight_scale", TYPE_F32, 0, 1, 1, {0, 0}, bad[0], ERR_CORRUPT,
         "scale 0 of 1 is -1; a number that is not negative is possible"},
        {"x.weight_scale", TYPE_F32, 0, 1, 1, {0, 0}, bad[1], ERR_CORRUPT, "scale 0 of 1 is inf"},
        {"x.weight_scale", TYPE_F32, 0, 1, 1, {0, 0}, bad[2], ERR_CORRUPT, "scale 0 of 1 is nan"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct model_file file = {.map.bytes = rows[i].file_bytes ? rows[i].file_bytes : 200};

        expect_fails(take(rows[i].name, rows[i].type, rows[i].num_dims, rows[i].rows, rows[i].columns,
                          rows[i].values, &rows[i].quantization, &file), rows[i].status, rows[i].sentence);
        arena_close(&file.arena);
    }
}

static void codes_that_are_no_matrix_or_have_two_scales_are_refused(void **state)
{
    const float one = 1;
    struct tensor tensors[] = {
        {.name = "x", .type = TYPE_F8_E4M3, .num_dims = 2, .num_rows = 2, .num_columns = 3, .data = codes},
        {.name = "x_scale", .type = TYPE_F32, .num_dims = 0, .num_rows = 1, .num_columns = 1, .data = &one},
        {.name = "x_scale_inv", .type = TYPE_F32, .num_dims = 0, .num_rows = 1, .num_columns = 1, .data = &one},
    };
    struct model_file file = {.tensors = tensors, .num_tensors = 3, .map.bytes = 200};
    struct hf_quantization none = {0};

    (void)state;
    expect_ok(model_file_index(&file));
    expect_fails(hf_quantization_take_scales(&none, &file), ERR_CORRUPT, "both x_scale_inv and x_scale are there");
    tensors[0].num_dims = 3;
    expect_fails(hf_quantization_take_scales(&none, &file), ERR_UNSUPPORTED,
                 "tensor 'x': 2 x 3 codes of F8_E4M3 in 3 dimensions; a matrix is supported");
    tensors[0].num_dims = 2;
    tensors[0].num_rows = 1;
    expect_fails(hf_quantization_take_scales(&none, &file), ERR_UNSUPPORTED, "1 x 3 codes of F8_E4M3");
    arena_close(&file.arena);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_writers_say_of_fp8_is_read),
    cmocka_unit_test(what_is_another_way_is_refused_by_name),
    cmocka_unit_test(each_code_has_the_scale_of_its_block),
    cmocka_unit_test(scales_that_fit_nothing_are_refused),
    cmocka_unit_test(codes_that_are_no_matrix_or_have_two_scales_are_refused),
};

TEST_MAIN(tests)

#include "tests/support/expect.h"

#include "proto/model/safetensors.h"

/* A file of this header, and `data_bytes` bytes 0, 1, 2, … behind it. */
static void write_file(struct bytes *out, const char *header, size_t data_bytes)
{
    uint64_t length = strlen(header);

    out->size = 0;
    bytes_append(out, &length, sizeof length);
    bytes_append(out, header, length);
    for (size_t i = 0; i < data_bytes; i++)
        bytes_append(out, &(uint8_t){(uint8_t)i}, 1);
}

static enum status read_file(const struct bytes *file, struct arena *arena, struct tensor **tensors, int32_t *n)
{
    return safetensors_read(file->data, file->size, arena, tensors, n);
}

static void tensors_lie_where_the_header_says(void **state)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"a.weight\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]},"
        "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
        "\"c\":{\"dtype\":\"F16\",\"shape\":[1,2,1,2],\"data_offsets\":[21,29]},"
        "\"d\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[4,8]},"
        "\"e\":{\"dtype\":\"F8_E4M3\",\"shape\":[2,5],\"data_offsets\":[1,11]}}  ";
    AUTO_CLOSE(bytes) struct bytes file = {0};
    AUTO_CLOSE(arena) struct arena arena = {0};
    const uint8_t *data;
    struct tensor *t;
    int32_t n;

    (void)state;
    write_file(&file, header, 29);
    data = file.data + 8 + strlen(header);
    expect_ok(read_file(&file, &arena, &t, &n));
    assert_int_equal(n, 5);
    assert_string_equal(t[0].name, "a.weight");
    assert_true(t[0].type == TYPE_BF16 && t[0].num_dims == 2 && t[0].num_rows == 2 && t[0].num_columns == 3);
    assert_ptr_equal(t[0].data, data + 8);
    assert_true(t[1].type == TYPE_F32 && t[1].num_dims == 1 && t[1].num_rows == 1 && t[1].num_columns == 2);
    assert_ptr_equal(t[1].data, data);
    assert_true(t[2].type == TYPE_F16 && t[2].num_dims == 4 && t[2].num_rows == 2 && t[2].num_columns == 2);
    assert_ptr_equal(t[2].data, data + 21); /* not aligned, which is nobody's concern */
    assert_true(t[3].type == TYPE_F32 && t[3].num_dims == 0 && t[3].num_rows == 1 && t[3].num_columns == 1);
    assert_true(t[4].type == TYPE_F8_E4M3 && t[4].num_dims == 2 && t[4].num_rows == 2 && t[4].num_columns == 5);
}

#define TENSOR(dtype, shape, offsets)                                                                        \
    "{\"x\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static void what_a_header_can_not_say_is_refused(void **state)
{
    static const struct {
        const char *header;
        enum status status;
        const char *sentence;
    } rows[] = {
        {"{", ERR_CORRUPT, "its header, line 1, column"},
        {"{\"x\":1,\"x\":1}", ERR_CORRUPT, "duplicate"},
        {"{\"x\":1}", ERR_CORRUPT, "tensor 'x': is no JSON object"},
        {"{\"\":{}}", ERR_CORRUPT, "a tensor's name has 0 bytes, 1 to 255 are possible"},
        {"{\"x y\":{}}", ERR_CORRUPT, "a tensor's name has the byte 0x20 in it"},
        {"{\"x\":{}}", ERR_CORRUPT, "tensor 'x': dtype is missing"},
        {TENSOR("7", "[1]", "[0,4]"), ERR_CORRUPT, "tensor 'x': dtype is 7; a text is needed"},
        {TENSOR("\"F8_E5M2\"", "[4]", "[0,4]"), ERR_UNSUPPORTED,
         "tensor 'x': dtype F8_E5M2 is not supported; these are: F32, F16, BF16, F8_E4M3"},
        {"{\"x\":{\"dtype\":\"F32\"}}", ERR_CORRUPT, "tensor 'x': shape is missing"},
        {TENSOR("\"F32\"", "[]", "[0,8]"), ERR_CORRUPT, "1 x 1 values of F32 are not the 8 bytes from 0 to 8"},
        {TENSOR("\"F32\"", "[1,1,1,1,1]", "[0,4]"), ERR_CORRUPT, "0 to 4 dimensions are possible"},
        {TENSOR("\"F32\"", "4", "[0,4]"), ERR_CORRUPT, "shape is 4; 0 to 4 dimensions are possible"},
        {TENSOR("\"F32\"", "[0]", "[0,0]"), ERR_CORRUPT, "dimensions from 1 to 2147483647 are possible"},
        {TENSOR("\"F32\"", "[-1]", "[0,4]"), ERR_CORRUPT, "dimensions from 1 to 2147483647 are possible"},
        {TENSOR("\"F32\"", "[1.0]", "[0,4]"), ERR_CORRUPT, "dimensions from 1 to 2147483647 are possible"},
        {TENSOR("\"F32\"", "[2147483648]", "[0,4]"), ERR_CORRUPT, "dimensions from 1 to 2147483647 are possible"},
        {TENSOR("\"F32\"", "[2147483647,2147483647,2147483647,1]", "[0,4]"), ERR_CORRUPT,
         "63 bits count no more rows"},
        {TENSOR("\"F32\"", "[2147483647,2147483647,2147483647]", "[0,4]"), ERR_CORRUPT,
         "4611686014132420609 x 2147483647 values of F32 are not the 4 bytes from 0 to 4"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1]}}", ERR_CORRUPT, "tensor 'x': data_offsets is missing"},
        {TENSOR("\"F32\"", "[1]", "[0]"), ERR_CORRUPT, "data_offsets is [0]; where it begins and ends is needed"},
        {TENSOR("\"F32\"", "[1]", "[0,4,8]"), ERR_CORRUPT, "where it begins and ends is needed"},
        {TENSOR("\"F32\"", "[1]", "[4,0]"), ERR_CORRUPT, "where it begins and ends is needed"},
        {TENSOR("\"F32\"", "[1]", "[-4,0]"), ERR_CORRUPT, "where it begins and ends is needed"},
        {TENSOR("\"F32\"", "[1]", "[\"0\",4]"), ERR_CORRUPT, "where it begins and ends is needed"},
        {TENSOR("\"F32\"", "[1]", "[0,8]"), ERR_CORRUPT, "1 x 1 values of F32 are not the 8 bytes from 0 to 8"},
        {TENSOR("\"F32\"", "[4]", "[4,20]"), ERR_CORRUPT, "ends at byte 20 of the data, of which there are 16"},
        {TENSOR("\"F32\"", "[1]", "[9223372036854775803,9223372036854775807]"), ERR_CORRUPT,
         "ends at byte 9223372036854775807 of the data"},
        {TENSOR("\"F32\"", "[1]", "[0,9223372036854775808]"), ERR_CORRUPT, "too big integer"},
    };
    AUTO_CLOSE(bytes) struct bytes file = {0};
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct tensor *tensors;
    int32_t n;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        write_file(&file, rows[i].header, 16);
        expect_fails(read_file(&file, &arena, &tensors, &n), rows[i].status, rows[i].sentence);
    }
}

static void a_length_is_compared_with_the_file_and_with_the_limit(void **state)
{
    static const struct {
        uint64_t length;
        const char *sentence;
    } rows[] = {
        {3, "its header has 3 bytes and the file ends after 2: it is cut short or damaged"},
        {UINT64_MAX, "its header has 18446744073709551615 bytes and the file ends after 2"},
        {UINT64_MAX - 7, "its header has 18446744073709551608 bytes"},
        {0, "its header, line"},
    };
    AUTO_CLOSE(bytes) struct bytes file = {0};
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct tensor *tensors;
    int32_t n;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        write_file(&file, "{}", 0);
        memcpy(file.data, &rows[i].length, sizeof rows[i].length);
        expect_fails(read_file(&file, &arena, &tensors, &n), ERR_CORRUPT, rows[i].sentence);
    }
    for (size_t size = 0; size < 9; size++) {
        file.size = size;
        expect_fails(read_file(&file, &arena, &tensors, &n), ERR_CORRUPT, "is no file of safetensors");
    }
    write_file(&file, "{}", 33 << 20);
    memcpy(file.data, &(uint64_t){33 << 20}, sizeof(uint64_t));
    expect_fails(read_file(&file, &arena, &tensors, &n), ERR_UNSUPPORTED,
                 "its header has 34603008 bytes; 33554432 is the limit");
    write_file(&file, "{}", 0);
    expect_ok(read_file(&file, &arena, &tensors, &n));
    assert_int_equal(n, 0);
}

static void deep_nesting_is_refused(void **state)
{
    AUTO_CLOSE(bytes) struct bytes header = {0}, file = {0};
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct tensor *tensors;
    int32_t n;

    (void)state;
    bytes_printf(&header, "{\"x\":");
    for (int i = 0; i < 100000; i++)
        bytes_append(&header, "[", 1);
    write_file(&file, bytes_text(&header), 0);
    expect_fails(read_file(&file, &arena, &tensors, &n), ERR_CORRUPT, "maximum parsing depth reached");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(tensors_lie_where_the_header_says),
    cmocka_unit_test(what_a_header_can_not_say_is_refused),
    cmocka_unit_test(a_length_is_compared_with_the_file_and_with_the_limit),
    cmocka_unit_test(deep_nesting_is_refused),
};

TEST_MAIN(tests)

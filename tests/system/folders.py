"""A tiny model of GGUF as a folder of Hugging Face's, with the same values: what tests of such folders share."""
import bisect
import functools
import json
import math
import os
import struct

import tandem

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_GGUF_TYPES = {"F32": 0, "F16": 1, "BF16": 30}
_HF_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
             "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
             "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_GEMMA3_NAMES = {**_HF_NAMES, "post_attention_norm": "post_attention_layernorm",
                 "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
            "gemma3": "Gemma3ForCausalLM"}


# ---- numbers ------------------------------------------------------------------------------------

def pack(values, dtype):
    if dtype == "BF16":  # to the nearest, the even one of two
        words = struct.unpack(f"<{len(values)}I", pack(values, "F32"))
        return struct.pack(f"<{len(values)}H", *((w + 0x7fff + (w >> 16 & 1)) >> 16 for w in words))
    return struct.pack(f"<{len(values)}{'e' if dtype == 'F16' else 'f'}", *values)


def unpack(data, dtype):
    if dtype == "BF16":
        words = struct.unpack(f"<{len(data) // 2}H", data)
        return unpack(struct.pack(f"<{len(words)}I", *(w << 16 for w in words)), "F32")
    size = 2 if dtype == "F16" else 4
    return struct.unpack(f"<{len(data) // size}{'e' if dtype == 'F16' else 'f'}", data)


# ---- GGUF ---------------------------------------------------------------------------------------

class Gguf:
    """What make_tiny_model writes: tensors of F32, the values of metadata by their keys."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = bytearray(f.read())
        self.at = 8
        num_tensors, num_values = self._take("Q"), self._take("Q")
        self.metadata = {}
        for _ in range(num_values):
            key = self._string()
            self.metadata[key] = self._value(self._take("I"))
        self.tensors = {}  # name: (dimensions, where its type stands, where its data is)
        for _ in range(num_tensors):
            name = self._string()
            dims = [self._take("Q") for _ in range(self._take("I"))]
            place_of_type = self.at
            self._take("I")
            self.tensors[name] = dims, place_of_type, self._take("Q")
        start = (self.at + 31) // 32 * 32
        self.tensors = {name: (dims, place, start + offset)
                        for name, (dims, place, offset) in self.tensors.items()}

    def _take(self, code):
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize(code)
        return value

    def _string(self):
        size = self._take("Q")
        self.at += size
        return self.data[self.at - size:self.at].decode()

    def _value(self, kind):
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take(_NUMBERS[kind])
        of, count = self._take("I"), self._take("Q")
        return [self._value(of) for _ in range(count)]

    def values(self, name):
        dims, _, start = self.tensors[name]
        count = dims[0] * (dims[1] if len(dims) > 1 else 1)
        return unpack(self.data[start:start + 4 * count], "F32")

    def put(self, name, values, dtype):
        _, place_of_type, start = self.tensors[name]
        struct.pack_into("<I", self.data, place_of_type, _GGUF_TYPES[dtype])
        data = pack(values, dtype)
        self.data[start:start + len(data)] = data


# ---- the folder ---------------------------------------------------------------------------------

def _config(gguf, architecture):
    of = {key[len(architecture) + 1:]: value for key, value in gguf.metadata.items()
          if key.startswith(architecture + ".")}
    config = {"architectures": [_CLASSES[architecture]], "hidden_size": of["embedding_length"],
              "intermediate_size": of["feed_forward_length"], "num_hidden_layers": of["block_count"],
              "num_attention_heads": of["attention.head_count"],
              "num_key_value_heads": of["attention.head_count_kv"], "head_dim": of["attention.key_length"],
              "vocab_size": len(gguf.metadata["tokenizer.ggml.tokens"]),
              "max_position_embeddings": of["context_length"], "rope_theta": of["rope.freq_base"],
              "rms_norm_eps": of["attention.layer_norm_rms_epsilon"],
              "tie_word_embeddings": "output.weight" not in gguf.tensors}
    if architecture == "gemma3":
        config.update(sliding_window=of["attention.sliding_window"],
                      sliding_window_pattern=of["attention.sliding_window_pattern"],
                      query_pre_attn_scalar=of["attention.key_length"])
    return config


def _all_merges(tokens, scores, types):
    """As SentencePiece's are converted: the best token first, each in all ways that two others make it."""
    words = {token: i for i, token in enumerate(tokens) if types[i] == 1}
    made = sorted((w for w in words if len(w) > 1), key=lambda w: -scores[words[w]])
    return [[w[:i], w[i:]] for w in made for i in range(1, len(w)) if w[:i] in words and w[i:] in words]


def _tokenizer(gguf):
    of = {key[len("tokenizer.ggml."):]: value for key, value in gguf.metadata.items()
          if key.startswith("tokenizer.ggml.")}
    tokens, types = of["tokens"], of["token_type"]
    is_byte_level = of["model"] == "gpt2"
    names = {key: tokens[of[key + "_token_id"]] for key in ("bos", "eos") if key + "_token_id" in of}
    single = [{"Sequence": {"id": "A", "type_id": 0}}]
    if of["add_bos_token"]:
        single.insert(0, {"SpecialToken": {"id": names["bos"], "type_id": 0}})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": token, "special": True, "normalized": False, "lstrip": False}
                         for i, token in enumerate(tokens) if types[i] in (2, 3)],
        "normalizer": None if is_byte_level else
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]} if is_byte_level else None,
        "post_processor": {"type": "TemplateProcessing", "single": single},
        "model": {"type": "BPE", "dropout": None, "unk_token": None if is_byte_level else tokens[3],
                  "byte_fallback": not is_byte_level, "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": of["merges"] if is_byte_level else _all_merges(tokens, of["scores"], types)}}
    config = {"bos_token": names["bos"], "eos_token": {"content": names["eos"]},
              "model_max_length": int(1e30), "chat_template": gguf.metadata.get("tokenizer.chat_template")}
    return tokenizer, config


def _halves(rows, num_heads):
    """Rows of q or k with the first of each pair in the first half of a head, the second in the other."""
    width = len(rows) // num_heads
    heads = [rows[at:at + width] for at in range(0, len(rows), width)]
    return [row for head in heads for row in head[::2] + head[1::2]]


def _tensor(gguf, name, architecture, dtype):
    """Its values as the folder has them; the file of GGUF gets the same."""
    values, dims = list(gguf.values(name)), gguf.tensors[name][0]
    is_norm, is_gemma3 = len(dims) == 1, architecture == "gemma3"
    if is_norm and is_gemma3:
        values = [value - 1 for value in values]
    values = list(unpack(pack(values, dtype), dtype))
    gguf.put(name, [value + 1 for value in values] if is_norm and is_gemma3 else values,
             "F32" if is_norm else dtype)
    if architecture == "llama" and name.endswith((".attn_q.weight", ".attn_k.weight")):
        rows = [values[at:at + dims[0]] for at in range(0, len(values), dims[0])]
        key = "llama.attention.head_count" + ("_kv" if "attn_k" in name else "")
        values = [value for row in _halves(rows, gguf.metadata[key]) for value in row]
    return dims[::-1], pack(values, dtype), dtype


def write_safetensors(path, tensors):
    """tensors: name: (shape, bytes, dtype)."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, data, dtype) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    tandem.write(path, struct.pack("<Q", len(text)) + text + b"".join(data for _, data, _ in tensors.values()))


def _hf_name(name, architecture):
    names = _GEMMA3_NAMES if architecture == "gemma3" else _HF_NAMES
    parts = name.split(".")
    if parts[0] != "blk":
        return f"{names[parts[0]]}.{parts[1]}"
    return f"model.layers.{parts[1]}.{names[parts[2]]}.{parts[3]}"


def _write(name, gguf, config, tensors, num_shards):
    tokenizer, tokenizer_config = _tokenizer(gguf)
    os.makedirs(tandem.path(name), exist_ok=True)
    files = [f"model-{i + 1:05}-of-{num_shards:05}.safetensors" for i in range(num_shards)]
    if num_shards == 1:
        write_safetensors(f"{name}/model.safetensors", tensors)
    else:
        places = {tensor: files[i % num_shards] for i, tensor in enumerate(tensors)}
        for file in files:
            write_safetensors(f"{name}/{file}", {t: tensors[t] for t in tensors if places[t] == file})
        tandem.write(f"{name}/model.safetensors.index.json", json.dumps({"weight_map": places}))
    for file, value in (("config.json", config), ("tokenizer.json", tokenizer),
                        ("tokenizer_config.json", tokenizer_config)):
        tandem.write(f"{name}/{file}", json.dumps(value))
    return tandem.path(name)


def make(name, architecture="llama", dtype="F32", num_shards=1, **options):
    """A folder of that name, and NAME.gguf of the same values: their paths."""
    gguf = Gguf(tandem.make_tiny_model(f"{name}-original.gguf", architecture, **options))
    tensors = {_hf_name(t, architecture): _tensor(gguf, t, architecture, dtype) for t in gguf.tensors}
    _write(name, gguf, _config(gguf, architecture), tensors, num_shards)
    return tandem.path(name), tandem.write(f"{name}.gguf", bytes(gguf.data))


def edit(folder, file, change):
    """change(the JSON of one of its files, {} where it is not there) and writes it again."""
    path = os.path.join(folder, file)
    value = {}
    if os.path.exists(path):
        with open(path) as f:
            value = json.load(f)
    change(value)
    with open(path, "w") as f:
        json.dump(value, f)


# ---- weights of 8 bits --------------------------------------------------------------------------

_POSITIVE_FP8 = [(i % 8 / 8 + (i >= 8)) * 2.0 ** max(i // 8 - 7, -6) for i in range(0x7f)]  # e4m3: 0 to 448


def _fp8_code(value):
    at = bisect.bisect(_POSITIVE_FP8, abs(value))
    low, high = _POSITIVE_FP8[at - 1], _POSITIVE_FP8[min(at, 0x7e)]
    return (at - 1 if abs(value) - low <= high - abs(value) else at) | (value < 0) << 7


def _fp8_value(code):
    return _POSITIVE_FP8[code & 0x7f] * (-1 if code & 0x80 else 1)


_COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized",
               "quantization_status": "compressed", "ignore": ["lm_head"], "kv_cache_scheme": None}


def _group(strategy, **more):
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy, **more}
    activations = {**weights, "dynamic": strategy != "tensor", "strategy": "token", "block_structure": None}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
                                          "input_activations": activations, "output_activations": None}}}


# As they are written: architecture, quantization_config, what a scale is called, its block (0: all), type, shape.
FP8_FORMS = {
    "blocks": ("qwen3", {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                         "weight_block_size": [128, 128]}, "weight_scale_inv", (128, 128), "F32", 2),
    "blocks-that-ranks-cut": ("llama", {"quant_method": "fp8", "activation_scheme": "dynamic",
                                        "weight_block_size": [48, 40]}, "weight_scale_inv", (48, 40), "BF16", 2),
    "compressed-blocks": ("llama", {**_COMPRESSED, **_group("block", block_structure=[128, 128])},
                          "weight_scale", (128, 128), "BF16", 2),
    "channels": ("llama", {**_COMPRESSED, **_group("channel")}, "weight_scale", (1, 0), "BF16", 2),
    "tensors": ("gemma3", {**_COMPRESSED, **_group("tensor")}, "weight_scale", (0, 0), "F16", 1),
    "scalars": ("qwen3", {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
                "weight_scale", (0, 0), "F32", 0),
    "fbgemm": ("llama", {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0,
                         "modules_to_not_convert": None}, "weight_scale", (1, 0), "F32", 2),
}


def _quantise(shape, values, block, scale_dtype):
    """Codes, scales and what they stand for."""
    height, width = block[0] or shape[0], block[1] or shape[1]
    across = -(-shape[1] // width)
    most = [0.0] * (-(-shape[0] // height) * across)

    def block_of(i):
        return i // shape[1] // height * across + i % shape[1] // width

    for i, value in enumerate(values):
        most[block_of(i)] = max(most[block_of(i)], abs(value))
    scales = unpack(pack([m / 448 for m in most], scale_dtype), scale_dtype)
    codes = bytes(_fp8_code(max(-448, min(448, value / scales[block_of(i)]))) for i, value in enumerate(values))
    stand_for = [_fp8_value(code) * scales[block_of(i)] for i, code in enumerate(codes)]
    return codes, scales, stand_for


@functools.lru_cache
def make_fp8(form):
    """A folder of that form, and one of BF16 that has what its codes and scales stand for: their paths."""
    architecture, quantization, scale_name, block, scale_dtype, num_dims = FP8_FORMS[form]
    gguf = Gguf(tandem.make_tiny_model(f"{form}-original.gguf", architecture))
    fp8, bf16 = {}, {}
    for t in gguf.tensors:
        name = _hf_name(t, architecture)
        shape, data, _ = tensor = _tensor(gguf, t, architecture, "BF16")
        fp8[name] = bf16[name] = tensor
        if "_proj" not in name or "layers.1.self_attn.v_proj" in name:  # as lists of what is left say
            continue
        values = [value * (1 + (i // shape[1] // 100 + i % shape[1] // 100) % 3) for i, value
                  in enumerate(unpack(data, "BF16"))]  # so that no two blocks have one scale by chance
        codes, scales, stand_for = _quantise(shape, values, block, scale_dtype)
        of_scales = [-(-shape[0] // (block[0] or shape[0])), -(-shape[1] // (block[1] or shape[1]))][:num_dims]
        fp8[name] = shape, codes, "F8_E4M3"
        fp8[name.replace("weight", scale_name)] = of_scales, pack(scales, scale_dtype), scale_dtype
        bf16[name] = shape, pack(stand_for, "BF16"), "BF16"
        if "static" in json.dumps(quantization) or form == "tensors":
            fp8[name.replace("weight", "input_scale")] = of_scales, pack([0.01], "F32"), "F32"
    config = _config(gguf, architecture)
    return (_write(form, gguf, {**config, "quantization_config": quantization}, fp8, 2),
            _write(f"{form}-expanded", gguf, config, bf16, 1))


def count_codes(folder):
    """Weights of F8_E4M3 in its files."""
    count = 0
    for file in os.listdir(folder):
        if file.endswith(".safetensors"):
            with open(os.path.join(folder, file), "rb") as f:
                header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            count += sum(math.prod(tensor["shape"]) for tensor in header.values() if tensor.get("dtype") == "F8_E4M3")
    return count

"""Writes what gguf-py reads in a model: python make_model_reference.py MODEL.gguf OUT.json

pip install gguf numpy xxhash
"""
import json
import sys

import numpy as np
import xxhash
from gguf import GGUFReader, dequantize

SAMPLE = 16  # values at the start, in the middle and at the end of a tensor

reader = GGUFReader(sys.argv[1])


def text_hash(key):
    """Hash of the strings joined by newlines."""
    texts = reader.fields[key].contents() if key in reader.fields else []
    return {"count": len(texts), "xxh3": xxhash.xxh3_64_hexdigest("\n".join(texts).encode())}


def dequantized(tensor):
    values = dequantize(tensor.data, tensor.tensor_type).ravel()
    middle = values.size // 2
    return {"name": tensor.name,
            "sum": float(np.sum(values, dtype=np.float64)),
            "first": [float(v) for v in values[:SAMPLE]],
            "middle": [float(v) for v in values[middle:middle + SAMPLE]],
            "last": [float(v) for v in values[-SAMPLE:]]}


one_of_each = {}
for tensor in reader.tensors:
    one_of_each.setdefault(tensor.tensor_type, tensor)
with open(sys.argv[2], "w") as out:
    json.dump({"tokens": text_hash("tokenizer.ggml.tokens"),
               "merges": text_hash("tokenizer.ggml.merges"),
               "dequantized": [dequantized(t) for t in one_of_each.values()],
               # name, type, columns, rows, byte offset in the file
               "tensors": [[t.name, t.tensor_type.name, int(t.shape[0]),
                            int(np.prod(t.shape[1:], dtype=np.int64)), int(t.data_offset)]
                           for t in reader.tensors]},
              out, separators=(",", ":"))
    out.write("\n")

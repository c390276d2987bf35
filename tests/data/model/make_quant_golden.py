"""Writes quant_golden.bin: blocks of every tensor type and what gguf-py makes of them.

pip install gguf numpy; python make_quant_golden.py
"""
import struct
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

TYPES = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0,
         T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]
# Byte offsets of the halves in a block; all other bytes may be anything.
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82],
          T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
ELEMENTS = 512

rng = np.random.default_rng(20240607)
out = bytearray()
for t in TYPES:
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[t]
    num_blocks = ELEMENTS // block_elements
    if block_elements == 1:
        values = rng.normal(0, 3, ELEMENTS).astype(np.float32)
        raw = np.frombuffer(gguf.quantize(values.reshape(1, -1), t).tobytes(), np.uint8)
    else:
        raw = rng.integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
        for at in HALVES[t]:
            scale = rng.normal(0, 0.01, num_blocks).astype(np.float16)
            raw[:, at:at + 2] = scale.view(np.uint8).reshape(-1, 2)
        raw = raw.ravel()
    values = gguf.dequantize(raw.reshape(1, -1).copy(), t).astype(np.float32).ravel()
    assert values.size == ELEMENTS and np.isfinite(values).all()
    out += struct.pack("<8sII", t.name.encode(), raw.size, values.size)
    out += raw.tobytes() + values.astype("<f4").tobytes()
Path(__file__).with_name("quant_golden.bin").write_bytes(out)

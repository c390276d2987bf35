"""A folder of Hugging Face's as transformers computes it, in plain Python and double: what tests hold answers against."""
import json
import math
import os
import struct

import folders


class PlainModel:
    """Llama, and Qwen 2, which adds biases to q, k and v. Weights of one file."""

    def __init__(self, folder):
        with open(os.path.join(folder, "config.json")) as f:
            self.config = json.load(f)
        with open(os.path.join(folder, "model.safetensors"), "rb") as f:
            data = f.read()
        start = 8 + struct.unpack_from("<Q", data)[0]
        self.tensors = {}
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                at, end = entry["data_offsets"]
                self.tensors[name] = entry["shape"], folders.unpack(data[start + at:start + end], entry["dtype"])

    def _vector(self, name):
        return self.tensors[name][1]

    def _times(self, name, x):
        """The product of a linear layer's weights with x, and its bias, if it has one."""
        (rows, columns), weights = self.tensors[name + ".weight"]
        bias = self.tensors[name + ".bias"][1] if name + ".bias" in self.tensors else [0] * rows
        return [sum(map(float.__mul__, weights[r * columns:(r + 1) * columns], x)) + bias[r] for r in range(rows)]

    def _norm(self, name, x):
        scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + self.config["rms_norm_eps"])
        return [v * scale * w for v, w in zip(x, self._vector(name + ".weight"))]

    def _heads(self, x, position=None):
        """x in heads, turned to their position."""
        dim = self.config["head_dim"]
        heads = [x[at:at + dim] for at in range(0, len(x), dim)]
        if position is None:
            return heads
        half = dim // 2
        angles = [position / self.config["rope_theta"] ** (2 * i / dim) for i in range(half)]
        return [[head[i] * math.cos(a) - head[i + half] * math.sin(a) for i, a in enumerate(angles)] +
                [head[i + half] * math.cos(a) + head[i] * math.sin(a) for i, a in enumerate(angles)]
                for head in heads]

    def _attend(self, q, keys, values):
        """q: heads of one row; keys, values: [position][head]."""
        dim, group = self.config["head_dim"], len(q) // len(keys[0])
        out = []
        for h, head in enumerate(q):
            scores = [math.exp(sum(map(float.__mul__, head, key[h // group])) / math.sqrt(dim)) for key in keys]
            total = sum(scores)
            out += [sum(s * value[h // group][i] for s, value in zip(scores, values)) / total for i in range(dim)]
        return out

    def _layer(self, name, rows):
        normed = [self._norm(name + ".input_layernorm", x) for x in rows]
        attention = name + ".self_attn"
        keys = [self._heads(self._times(attention + ".k_proj", x), p) for p, x in enumerate(normed)]
        values = [self._heads(self._times(attention + ".v_proj", x)) for x in normed]
        for p, x in enumerate(normed):
            q = self._heads(self._times(attention + ".q_proj", x), p)
            attended = self._times(attention + ".o_proj", self._attend(q, keys[:p + 1], values[:p + 1]))
            rows[p] = [a + b for a, b in zip(rows[p], attended)]
        for p, x in enumerate(rows):
            x = self._norm(name + ".post_attention_layernorm", x)
            gates, ups = self._times(name + ".mlp.gate_proj", x), self._times(name + ".mlp.up_proj", x)
            inner = [g / (1 + math.exp(-g)) * u for g, u in zip(gates, ups)]
            rows[p] = [a + b for a, b in zip(rows[p], self._times(name + ".mlp.down_proj", inner))]

    def logprobs(self, ids):
        """[position][token]: of what comes behind each id."""
        width, embedding = self.config["hidden_size"], self._vector("model.embed_tokens.weight")
        rows = [list(embedding[i * width:(i + 1) * width]) for i in ids]
        for i in range(self.config["num_hidden_layers"]):
            self._layer(f"model.layers.{i}", rows)
        output = "lm_head" if "lm_head.weight" in self.tensors else "model.embed_tokens"
        out = []
        for x in rows:
            logits = self._times(output, self._norm("model.norm", x))
            total = math.log(sum(map(math.exp, logits)))
            out.append([logit - total for logit in logits])
        return out

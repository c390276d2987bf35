"""Writes the weights of a GGUF file as a bf16 folder of Hugging Face's layout, tokenizer included.

usage: gguf_to_bf16.py FILE.gguf FOLDER   (in vLLM's venv, which has what it takes)
"""
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

source, folder = Path(sys.argv[1]).resolve(), sys.argv[2]
where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}

model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
# A fresh model, so that nothing in the folder says that its weights were quantised.
config = model.config
if hasattr(config, "quantization_config"):
    del config.quantization_config
config.architectures = [type(model).__name__]
fresh = type(model)(config)
fresh.load_state_dict(model.state_dict())
fresh.to(torch.bfloat16).save_pretrained(folder)
AutoTokenizer.from_pretrained(**where).save_pretrained(folder)

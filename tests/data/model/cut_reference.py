"""Cuts NAME_reference.json out of a reference run: cut_reference.py FOLDER > NAME_reference.json

FOLDER holds greedy.jsonl, perplexity.json and activations.json of one model (see README.md).
"""
import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
runs = [json.loads(line) for line in (folder / "greedy.jsonl").open()]
text = json.loads((folder / "perplexity.json").read_text())
activations = json.loads((folder / "activations.json").read_text())

row = lambda value: json.dumps(value, separators=(",", ":"))
greedy = [{"prompt": run["prompt_ids"], "generated": run["gen_ids"],
           "margins": [round(step["margin"], 4) for step in run["steps"]]} for run in runs]
stages = [{"l2": [p["l2"] for p in stage["positions"]],
           "first": [p["first16"][:4] for p in stage["positions"]]} for stage in activations["stages"]]

print('{"greedy": [', ",\n".join(map(row, greedy)), '],', sep="\n")
print('"text":', row({"ids": text["ids"], "logprobs": [round(p, 4) for p in text["logprobs"]],
                      "perplexity": text["perplexity"]}), ',')
print('"activations": {"ids":', row(activations["ids"]), ',\n"logits_top20":',
      row(activations["logits_top20"]), ',\n"stages": [', ",\n".join(map(row, stages)), ']}}', sep="\n")

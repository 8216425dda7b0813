"""How well machine-written text of a given language model is told from human pages: positives from a local Hugging Face folder.

Half of the pages (by the hash of their text) are human examples; the first words of the others are prompts, and what the model writes
after them, without the prompt, are the machine texts. Prints the card. Pages count as human if they were crawled before the cutoff;
`--trusted` vouches for all of them. Slow: it generates text.

    python benchmarks/data_aitext.py MODEL_FOLDER CORPUS_FOLDER [--count 2000] [--words 30] [--new 300] [--temperature 0.8] [--out aitext]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from upslope.config import Input
from upslope.data import shards
from upslope.data.artifacts import Corpus
from upslope.data.classify.config import AiText
from upslope.data.classify.train import text_hash
from upslope.machine.context import Context
from upslope.stages.classifier import TrainClassifier

BATCH = 8


def continuations(folder: Path, prompts: list[str], new: int, temperature: float) -> Iterator[str]:
    """What a causal language model writes after each prompt."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).to(device).eval()
    for start in range(0, len(prompts), BATCH):
        inputs = tokenizer(prompts[start : start + BATCH], return_tensors="pt", padding=True).to(device)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=new, do_sample=True, temperature=temperature, pad_token_id=tokenizer.pad_token_id)
        yield from tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    """Splits the pages, generates, trains, prints the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--words", type=int, default=30)
    parser.add_argument("--new", type=int, default=300)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--fpr", type=float, default=0.01)
    parser.add_argument("--trusted", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("aitext"))
    args = parser.parse_args()
    rows = [r for b in Corpus.load(args.corpus).batches(("url", "text", "source", "lang", "date", "licence")) for r in b.to_pylist()]
    rows = [r for r in rows if len(r["text"].split()) > args.words]
    prompting = [text_hash(r["text"], "upslope.bench.aitext") < 0.5 for r in rows]
    people = [r | shards.sizes(len(r["text"].encode()), None) for r, p in zip(rows, prompting) if not p]
    file = args.out / "human" / "00000.parquet"
    shards.write(file, shards.rows_to_table(people, shards.TEXT))
    human = Corpus.create(args.out / "human", [file], [])
    prompts = [" ".join(r["text"].split()[: args.words]) for r, p in zip(rows, prompting) if p][: args.count]
    written = [t for t in continuations(args.model, prompts, args.new, args.temperature) if t.strip()]
    machine = Corpus.from_texts(args.out / "machine", written, args.model.name)
    form = AiText(human=(Input(stage="human"),), machine=(Input(stage="machine"),), fpr=args.fpr, trusted=args.trusted)
    stage = TrainClassifier(purpose=f"triage of text by {args.model.name}", form=form, test=0.3, dev=0.3)
    found = stage.run(Context.scratch(args.out / "classifier", human=human, machine=machine))
    print((found.path / "card.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

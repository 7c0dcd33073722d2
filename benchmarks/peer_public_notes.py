"""The peer's side of the public-notes benchmark: plain PyTorch, transformers and PEFT.

Step 1 trains a language-model LoRA on the ACI-Bench and MTS-Dialog training notes and reports the perplexity on both
validation files. Step 2 classifies MTS-Dialog section headers (20 classes) with the head only, with a LoRA, and with
the same LoRA on top of the merged step-1 adapter, and reports the macro one-vs-rest AUROC on the validation file.

Every text is BOS followed by its tokens, without EOS, cut to the limit (BOS included) and right-padded to the longest
text of its batch. Throughput counts real (unpadded) positions over the wall time of the whole training loop.

Needs ``torch``, ``transformers``, ``peft``, ``scikit-learn``, ``sentencepiece`` and ``protobuf``. For example::

    python benchmarks/peer_public_notes.py --base tinyllama260k/hf --aci-bench aci-bench --mts-dialog mts-dialog \
        --seeds 3 --out peer.json
"""

import argparse
import csv
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, LlamaTokenizer

PAD = 2  # </s>: the tokenizer has no padding token, and no text here holds an </s>
BLOCK = 30  # steps in one of the blocks over which the spread of the throughput is taken
ROWS = ("head_only", "lora", "lora_over_step1")


def read_column(path, column):
    """Return one column of a CSV file as a list of strings."""
    with open(path, encoding="utf-8", newline="") as file:
        return [row[column] for row in csv.DictReader(file)]


def encode(tokenizer, texts, max_length):
    """Return the token ids of each text: BOS first, no EOS, at most ``max_length`` ids."""
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [([tokenizer.bos_token_id] + ids)[:max_length] for ids in encoded]


def make_loader(ids, labels, batch_size, generator=None):
    """Return batches right-padded to their longest text, shuffled where a generator is given.

    Where ``labels`` is None the labels are the ids themselves, with -100 on the padding.
    """

    def collate(indices):
        longest = max(len(ids[i]) for i in indices)
        input_ids = torch.full((len(indices), longest), PAD)
        mask = torch.zeros_like(input_ids)
        for row, i in enumerate(indices):
            input_ids[row, : len(ids[i])] = torch.tensor(ids[i])
            mask[row, : len(ids[i])] = 1
        if labels is None:
            targets = input_ids.masked_fill(mask == 0, -100)
        else:
            targets = torch.tensor([labels[i] for i in indices])
        return {"input_ids": input_ids, "attention_mask": mask, "labels": targets}

    return DataLoader(range(len(ids)), batch_size, generator is not None, generator=generator, collate_fn=collate)


def train(model, ids, labels, args, epochs, seed):
    """Train with AdamW on every weight that is not frozen; return the throughput and what went into it."""
    loader = make_loader(ids, labels, args.batch_size, torch.Generator().manual_seed(seed))
    total = epochs * len(loader)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.0)
    schedule = transformers.get_scheduler(args.schedule, optimizer, round(args.warmup * total), total)
    model.train()
    real, positions, stamps = [], 0, [time.perf_counter()]
    for _ in range(epochs):
        for batch in loader:
            model(**batch).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            real.append(int(batch["attention_mask"].sum()))
            positions += batch["input_ids"].numel()
            stamps.append(time.perf_counter())
            if len(real) == args.max_steps:
                return summarise(real, positions, stamps)
    return summarise(real, positions, stamps)


def summarise(real, positions, stamps):
    """Return the steps, the padding share and the real tokens per second: whole loop, and over blocks of steps."""
    starts = range(0, len(real) - BLOCK + 1, BLOCK)
    blocks = [sum(real[i : i + BLOCK]) / (stamps[i + BLOCK] - stamps[i]) for i in starts]
    result = {"steps": len(real), "real_tokens": sum(real), "padding_share": round(1 - sum(real) / positions, 4)}
    seconds = stamps[-1] - stamps[0]
    result |= {"seconds": round(seconds, 2), "real_tokens_per_second": round(sum(real) / seconds, 1)}
    if blocks:
        result |= {f"block_{f.__name__}": round(f(blocks), 1) for f in (statistics.median, min, max)}
    return result


@torch.no_grad()
def perplexity(model, ids, args):
    """Return exp(sum of negative log-likelihoods / number of predicted tokens) over all the texts together."""
    model.eval()
    loss, count = 0.0, 0
    for batch in make_loader(ids, None, args.batch_size):
        targets = batch.pop("labels")[:, 1:]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        loss += cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum").item()
        count += int((targets != -100).sum())
    return math.exp(loss / count)


@torch.no_grad()
def macro_auroc(model, ids, labels, args):
    """Return the one-vs-rest AUROC of the class probabilities, averaged over the classes with both outcomes."""
    model.eval()
    batches = make_loader(ids, labels, args.batch_size)
    scores = np.concatenate([model(**batch).logits.softmax(-1).numpy() for batch in batches])
    truth = np.eye(scores.shape[1], dtype=bool)[labels]
    classes = [c for c in range(scores.shape[1]) if truth[:, c].any() and not truth[:, c].all()]
    return float(np.mean([roc_auc_score(truth[:, c], scores[:, c]) for c in classes]))


def language_model(args, tokenizer, merged):
    """Run step 1, save the base with its adapter merged in to the folder ``merged`` and return the figures."""
    ids = {}
    for split, mts in {"train": "Training", "valid": "Validation"}.items():
        texts = read_column(args.aci_bench / f"{split}.csv", "note")
        texts += read_column(args.mts_dialog / f"MTS_Dataset_{mts}Set.csv", "section_text")
        ids[split] = encode(tokenizer, texts, args.lm_length)
    torch.manual_seed(args.lm_seed)
    model = LlamaForCausalLM.from_pretrained(args.base, use_cache=False, dtype=torch.float32)
    before = perplexity(model, ids["valid"], args)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type=TaskType.CAUSAL_LM)
    model = get_peft_model(model, config)
    result = train(model, ids["train"], None, args, args.lm_epochs, args.lm_seed)
    result |= {"perplexity_before": before, "perplexity_after": perplexity(model, ids["valid"], args)}
    model.merge_and_unload().save_pretrained(merged)
    return result


def classify(args, tokenizer, row, merged, seed):
    """Run one row of step 2 with one seed and return its figures."""
    train_file, valid_file = (args.mts_dialog / f"MTS_Dataset_{name}Set.csv" for name in ("Training", "Validation"))
    headers = read_column(train_file, "section_header")
    classes = {name: index for index, name in enumerate(sorted(set(headers)))}
    torch.manual_seed(seed)
    base = merged if row == "lora_over_step1" else args.base
    settings = {"num_labels": len(classes), "pad_token_id": PAD, "use_cache": False, "dtype": torch.float32}
    model = LlamaForSequenceClassification.from_pretrained(base, **settings)
    if row == "head_only":
        model.model.requires_grad_(False)
    else:
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type=TaskType.SEQ_CLS)
        model = get_peft_model(model, config)
    ids = encode(tokenizer, read_column(train_file, "section_text"), args.cls_length)
    result = train(model, ids, [classes[name] for name in headers], args, args.cls_epochs, seed)
    ids = encode(tokenizer, read_column(valid_file, "section_text"), args.cls_length)
    labels = [classes[name] for name in read_column(valid_file, "section_header")]
    return {"row": row, "seed": seed, "macro_auroc": macro_auroc(model, ids, labels, args)} | result


def main():
    """Parse the command line, run both steps and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--base", "--aci-bench", "--mts-dialog", "--out"):
        parser.add_argument(name, type=Path, required=True)
    defaults = {"seeds": 3, "lm-seed": 0, "lm-epochs": 5, "cls-epochs": 10, "lm-length": 512, "cls-length": 256}
    for name, value in (defaults | {"batch-size": 16, "threads": 2, "max-steps": 0}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--schedule", choices=("linear", "constant_with_warmup"), default="linear")
    parser.add_argument("--warmup", type=float, default=0.0, help="share of the steps with a rising learning rate")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="which rows of step 2 to run")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = LlamaTokenizer.from_pretrained(args.base)
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    report = {"versions": versions, "arguments": {k: v for k, v in vars(args).items() if not isinstance(v, Path)}}
    with tempfile.TemporaryDirectory() as merged:
        report |= {"language_model": language_model(args, tokenizer, merged), "section_header": []}
        print(json.dumps(report["language_model"]), flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        for seed in range(args.seeds):
            for row in args.rows:
                report["section_header"].append(classify(args, tokenizer, row, merged, seed))
                print(json.dumps(report["section_header"][-1]), flush=True)
                args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

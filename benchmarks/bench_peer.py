"""The peer's side of the throughput figures: PyTorch, transformers and PEFT, a stretch of updates at a time.

`benchmarks/bench.py` starts it; for every line on standard input it trains on and answers with what it did, in JSON.
Needs what `peer_public_notes.py` needs. The notes go through the functions of that file.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import transformers
from peer_public_notes import PAD, encode, read_column, train
from peft import LoraConfig, TaskType, get_peft_model
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, LlamaTokenizer


def dense(updates):
    """Return a function that trains some updates of the dense step, four rows of 512 tokens."""
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=512, use_cache=False,
    )  # fmt: skip
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type=TaskType.CAUSAL_LM)
    model = get_peft_model(LlamaForCausalLM(shape), adapter)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.01)
    tokens = torch.randint(1, 32000, (4, 512))

    def stretch():
        start = time.perf_counter()
        for _ in range(updates):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return {"tokens": updates * tokens.numel(), "seconds": time.perf_counter() - start}

    return stretch


def notes(work, updates, base, aci_bench, mts_dialog):
    """Return a function that trains some updates of step 1 or step 2 on the public notes."""
    tokenizer, training = LlamaTokenizer.from_pretrained(base), mts_dialog / "MTS_Dataset_TrainingSet.csv"
    texts, labels = read_column(training, "section_text"), None
    settings = {"use_cache": False, "dtype": torch.float32}
    torch.manual_seed(0)
    if work == "notes1":
        texts = read_column(aci_bench / "train.csv", "note") + texts
        model, kind, rank = LlamaForCausalLM.from_pretrained(base, **settings), TaskType.CAUSAL_LM, 16
    else:
        headers = read_column(training, "section_header")
        labels = [sorted(set(headers)).index(header) for header in headers]
        settings |= {"num_labels": len(set(headers)), "pad_token_id": PAD}
        model, kind, rank = LlamaForSequenceClassification.from_pretrained(base, **settings), TaskType.SEQ_CLS, 8
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], task_type=kind)
    model = get_peft_model(model, adapter)
    ids = encode(tokenizer, texts, 512 if work == "notes1" else 256)
    args = argparse.Namespace(batch_size=16, lr=3e-3, schedule="linear", warmup=0.0, max_steps=updates)
    seeds = iter(range(10**6))

    def stretch():
        done = train(model, ids, labels, args, 1, next(seeds))
        return {"tokens": done["real_tokens"], "seconds": done["real_tokens"] / done["real_tokens_per_second"]}

    return stretch


def main():
    """Build the work that the first argument names, answer "ready", then train a stretch for every line."""
    work, updates, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    stretch = dense(updates) if work == "dense" else notes(work, updates, *map(Path, sys.argv[4:]))
    stretch()
    print(json.dumps({"ready": torch.__version__}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(stretch()), flush=True)


if __name__ == "__main__":
    main()

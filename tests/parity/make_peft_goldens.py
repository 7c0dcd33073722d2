"""Writes tests/goldens/peft: adapters that PEFT makes for a tiny LLaMA, and the logits it gives with them in float32.

    .venv/bin/python -m tests.parity.make_peft_goldens

Needs the extra `parity`. The base is its config.json, the shapes of its tensors and a seed.
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

from tests.goldens.weights import make_weights

GOLDENS = Path(__file__).parents[1] / "goldens" / "peft"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
PATTERNS = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 3}
PATTERNS["rank_pattern"] = {"q_proj": 2, "model.layers.1.self_attn.v_proj": 4}
PATTERNS["alpha_pattern"] = {"down_proj": 3, "model.layers.0.self_attn.q_proj": 9}
OPTIONS = {
    "plain": {},
    "all_linear": {"target_modules": "all-linear"},
    "patterns": PATTERNS,
    "rslora": {"use_rslora": True, "r": 4},
    "dora": {"use_dora": True, "target_modules": ["v_proj", "o_proj", "up_proj"]},
    "layers": {"layers_to_transform": [1], "target_modules": ["k_proj", "gate_proj"]},
    "seq_cls": {"task_type": "SEQ_CLS"},
    "regex": {"target_modules": r".*\.0\.(self_attn\.q|mlp\.down)_proj|model\.layers\.1\..*o_proj"},
}
SEED, LABELS = 0, 3
NOTES = [np.random.RandomState(SEED + i).randint(1, 32, length).tolist() for i, length in enumerate((8, 5))]


def base_model(task: str) -> tuple[transformers.PreTrainedModel, dict[str, list[int]]]:
    """(the base with its seeded weights, the shapes of its tensors)."""
    config = transformers.LlamaConfig(**CONFIG, num_labels=LABELS)
    shapes = transformers.LlamaForCausalLM(config).state_dict()
    shapes = {name: list(x.shape) for name, x in sorted(shapes.items())}
    kind = transformers.LlamaForCausalLM if task == "CAUSAL_LM" else transformers.LlamaForSequenceClassification
    model = kind(config).eval()
    weights = {name: torch.tensor(x) for name, x in make_weights(shapes, SEED).items()}
    found = model.load_state_dict(weights, strict=False)
    assert set(found.missing_keys) <= {"score.weight"} and set(found.unexpected_keys) <= {"lm_head.weight"}
    return model, shapes


def golden(option: str, fields: dict, seed: int) -> list[list[float]]:
    """Writes an adapter; returns its logits."""
    fields = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 5, **copy.deepcopy(fields)}
    torch.manual_seed(seed)
    model = peft.get_peft_model(base_model(fields["task_type"])[0], peft.LoraConfig(**fields)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "magnitude" in name:
                weight.mul_(1 + 0.5 * torch.rand_like(weight))
            elif "lora_" in name or "modules_to_save" in name:
                weight.add_(0.3 * torch.randn_like(weight))
        found = [model(torch.tensor([note])).logits[0] for note in NOTES]
    logits = found[0] if fields["task_type"] == "CAUSAL_LM" else torch.stack(found)
    model.save_pretrained(GOLDENS / option)
    (GOLDENS / option / "README.md").unlink()
    path = GOLDENS / option / "adapter_config.json"
    written = json.loads(path.read_text())
    if isinstance(written["target_modules"], list):  # of a set, so in another order every time
        written["target_modules"].sort()
    path.write_text(json.dumps(written, indent=2) + "\n")
    return [[float(f"{x:.7g}") for x in row] for row in logits.tolist()]


if __name__ == "__main__":
    shutil.rmtree(GOLDENS, ignore_errors=True)
    logits = {option: golden(option, fields, seed) for seed, (option, fields) in enumerate(OPTIONS.items())}
    given = {"config": CONFIG, "shapes": base_model("CAUSAL_LM")[1], "seed": SEED, "notes": NOTES}
    body = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in given.items()]
    rows = ",\n".join(f"{json.dumps(option)}: {json.dumps(value)}" for option, value in logits.items())
    (GOLDENS / "logits.json").write_text("{\n" + ",\n".join(body) + ',\n"logits": {\n' + rows + "\n}\n}\n")
    size = sum(path.stat().st_size for path in GOLDENS.rglob("*") if path.is_file())
    print(f"{GOLDENS}: {size:,} bytes, peft {peft.__version__}, transformers {transformers.__version__}")

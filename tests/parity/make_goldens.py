"""Writes tests/goldens/models.json, the logits that transformers gives tiny models of every family in float32.

    .venv/bin/python -m tests.parity.make_goldens

Needs the extra `parity`. A model is its config.json, the shapes of its tensors and a seed.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.goldens.weights import make_weights

GOLDENS = Path(__file__).parents[1] / "goldens" / "models.json"
TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}
# Of 24 positions and head_dim 16 all three bands of wavelengths of "llama3" are seen: 6, 32 and above 64.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
# The fields of config.json in the spelling of the time.
FAMILIES = {
    "llama 1": {"model_type": "llama", "num_key_value_heads": None},
    "llama 2": {"model_type": "llama", "rope_theta": 10000.0, "rope_scaling": None},
    "llama 3.1": {
        "model_type": "llama",
        "head_dim": 16,
        "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, **LLAMA3},
    },
    "llama 3.2": {
        "model_type": "llama",
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, **LLAMA3},
    },
    "linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {
        "model_type": "llama",
        "max_position_embeddings": 8,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 6, "rope_theta": 10000.0},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1000000.0, "use_sliding_window": False},
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
}
POSITIONS = [0, 7, 15, 23]


def golden(fields: dict, seed: int) -> dict:
    """One model as the file holds it."""
    raw = {name: value for name, value in {**TINY, **fields}.items() if value is not None}
    # `for_model` keeps a reference to nested settings and writes into them.
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw)))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    shapes = {name: list(x.shape) for name, x in sorted(model.state_dict().items()) if name not in tied}
    weights = {name: torch.tensor(x) for name, x in make_weights(shapes, seed).items()}
    missing = model.load_state_dict(weights, strict=False)
    assert set(missing.missing_keys) <= tied and not missing.unexpected_keys
    model.tie_weights()
    tokens = np.random.RandomState(seed).randint(0, 32, 24).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, POSITIONS].numpy()
    logits = [[float(f"{x:.7g}") for x in row] for row in logits]
    return {"config": raw, "shapes": shapes, "seed": seed, "tokens": tokens, "positions": POSITIONS, "logits": logits}


if __name__ == "__main__":
    found = {family: golden(fields, seed) for seed, (family, fields) in enumerate(FAMILIES.items())}
    GOLDENS.parent.mkdir(exist_ok=True)
    body = ",\n".join(f"{json.dumps(family)}: {json.dumps(value)}" for family, value in found.items())
    GOLDENS.write_text("{\n" + body + "\n}\n")
    print(f"{GOLDENS}: {GOLDENS.stat().st_size:,} bytes, transformers {transformers.__version__}")

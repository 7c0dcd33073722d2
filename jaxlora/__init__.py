"""Clinical LLaMA-LoRA in JAX/Flax: a frozen LLaMA, a clinical LoRA, a downstream LoRA and a head."""

__version__ = "0.1.0"

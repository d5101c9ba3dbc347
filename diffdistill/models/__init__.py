"""Adapters to the ecosystem: diffusers pipelines as teachers, conditioning, LoRA, attention, export."""

"""What connects the core to diffusers: pipelines as teachers, conditions, LoRA, attention and export."""

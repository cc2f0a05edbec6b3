"""A LLaVA of real pretrained weights for two CPU cores: DINOv2-S/14 and SmolLM2-135M."""

"""What makes ``data/demo``: synthetic scenes, a tokenizer, and a tiny LLaVA trained on them from scratch."""

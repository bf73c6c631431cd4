"""What a model file means: configuration, roles of tensors, block types, tokenizer."""

"""Many models, prompts and engines in one go: a plan in, one matrix of verdicts out."""

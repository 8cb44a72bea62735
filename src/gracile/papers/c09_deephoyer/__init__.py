"""C9: DeepHoyer, scale-invariant sparsity regularizers."""

"""C6: learning structured sparsity in deep neural networks."""

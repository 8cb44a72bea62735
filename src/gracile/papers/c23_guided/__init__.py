"""C23: direct sparse convolution and guided pruning."""

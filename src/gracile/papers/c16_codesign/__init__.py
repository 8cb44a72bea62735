"""C16: running sparse and low-precision neural networks, when algorithm meets hardware."""

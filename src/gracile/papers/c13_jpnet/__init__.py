"""C13: joint regularization on activations and weights."""

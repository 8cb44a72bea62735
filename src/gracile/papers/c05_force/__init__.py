"""C5: coordinating filters for faster deep neural networks (force regularization)."""

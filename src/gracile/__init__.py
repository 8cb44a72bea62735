"""gracile: efficient and scalable deep learning for PyTorch."""

__version__ = "0.1.0"

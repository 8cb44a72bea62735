"""C11: how to obtain and run light and efficient deep learning networks."""

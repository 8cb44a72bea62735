"""C22: a compact DNN that adapts to other domains."""

"""C12: learning efficient sparse structures in speech recognition."""

"""C3: learning intrinsic sparse structures within long short-term memory."""

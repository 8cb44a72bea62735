"""C18: rank clipping, and whole rows and columns of crossbars deleted."""

"""T2: direct sparse convolution in whole, trained networks."""

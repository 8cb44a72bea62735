"""T1: SmoothOut: smoothing out sharp minima."""

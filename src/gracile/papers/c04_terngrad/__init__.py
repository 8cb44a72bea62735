"""C4: TernGrad, ternary gradients for distributed training."""

"""What can be reduced: public architectures and hard cases, and a study that tries them all."""

from reducible.operators import declare

declare()  # before anything imports torchvision, as timm and transformers do

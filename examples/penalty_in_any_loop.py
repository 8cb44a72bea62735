"""Structured sparsity in a loop of your own: one line before the optimizer's step."""

import torch
from torch import nn

from gracile.algebra import GroupHoyer, Lasso, Term, add_gradient_, filters, shapes, threshold_
from gracile.zoo import build, load

torch.manual_seed(0)
splits = load("digits")
model = build("lenet", splits)
parameters = dict(model.named_parameters())
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

# Rows and columns of two layers, and a scale-free penalty on a third: penalties and groups compose.
terms = [
    Term(group(f"{name}.weight"), Lasso(), 0.01) for name in ("conv1", "conv2") for group in (filters, shapes)
]
terms.append(Term(filters("fc1.weight"), GroupHoyer(), 1e-3))

batches = torch.utils.data.DataLoader(splits.train, 64, shuffle=True)
for epoch in range(4):
    for images, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        add_gradient_(terms, parameters)
        optimizer.step()
        threshold_([parameters["conv1.weight"], parameters["conv2.weight"]], 1e-4)
    columns = shapes("conv2.weight").of(parameters).norms
    print(f"epoch {epoch + 1}: {(columns == 0).float().mean():.0%} of conv2's columns are zero")

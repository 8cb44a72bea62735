"""Drop a layer of a transformer, remove half of its units, and hand the result to other runtimes."""

import importlib.util

import torch
from torch import nn

from gracile.graph import droppable, watch
from gracile.reduce import drop, export_onnx, load, remove, save, smallest


class Encoder(nn.Module):
    """Any module whose forward is Python."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True) for _ in range(3)
        )
        self.head = nn.Linear(32, 100)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


torch.manual_seed(0)
model, tokens = Encoder().eval(), torch.randint(100, (2, 12))
print("may go whole:", ", ".join(detour.module for detour in droppable(watch(model, tokens))))

depth = drop(model, tokens, blocks=["layers.1", "layers.2.self_attn"])
width = remove(depth.model, tokens, units=lambda graph, model: smallest(graph, model, fraction=0.5))
before, after = (sum(p.numel() for p in m.parameters()) for m in (model, width.model))
print(f"parameters {before} -> {after}; errors {depth.verdict.error:.1e}, {width.verdict.error:.1e}")

save("runs/encoder", width.model, depth.cut, width.cut)
again = load("runs/encoder", Encoder()).eval()
assert torch.equal(again(tokens), width.model(tokens))

program = torch.export.export(again, (tokens,))
print("exported:", torch.allclose(program.module()(tokens), again(tokens), atol=1e-5))
if importlib.util.find_spec("onnxscript"):
    print("written:", export_onnx("runs/encoder/model.onnx", again, tokens))

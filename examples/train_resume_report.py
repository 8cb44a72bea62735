"""The main job from Python: train, learn structure, remove, fine-tune, measure, report."""

from pathlib import Path

from gracile.pipeline import Plan, publish, slim, summarize
from gracile.train import classification
from gracile.zoo import build, load

splits = load("digits")
plan = Plan(dense=6, learn=12, tune=4, strength=2e-2, batch_size=32)
reduced, outcome = slim(
    build("lenet", splits),
    splits,
    classification(),
    plan,
    title="LeNet on digits",
    folder=Path("runs/example-journey"),  # killed and started again, it continues where it stopped
)
summarize(outcome)
print("Report:", publish(outcome, "runs/example-journey/report.html"))

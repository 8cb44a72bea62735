"""Programs for sparse kernels compute what their models do, in memory that is used again and again."""

import gc
from threading import Thread

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from traced_networks import NETWORKS, make, sparse_

import gracile
from gracile.errors import GraphError, RefusedError, ShapeError, UsageError
from gracile.runtime import SparseCPU, fuse

SPARSE = SparseCPU(force={"*": "sparse"})

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.fixture(scope="module")
def compiled():
    """Each network compiled once, with sparse kernels wherever there are any."""
    made = {}

    def get(name):
        if name not in made:
            model, inputs = make(name)
            made[name] = model, inputs, gracile.compile(model, inputs(2), target=SPARSE)
        return made[name]

    return get


def equal(found, wanted, tolerance=1e-4):
    """The same nest with the same numbers."""
    mine, theirs = pytree.tree_flatten(found), pytree.tree_flatten(wanted)
    assert mine[1] == theirs[1]
    for a, b in zip(mine[0], theirs[0], strict=True):
        if isinstance(b, torch.Tensor):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert (a - b).abs().max() <= tolerance * b.abs().max()
        else:
            assert a == b
    return True


def run(model, *inputs):
    with torch.no_grad():
        return model(*inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_programs_equal_their_models_for_any_batch(compiled, name):
    model, inputs, program = compiled(name)
    for batch in (2, 5, 1, 3, 2):
        x = inputs(batch)
        kept = x.clone()
        assert equal(program(x), run(model, x))
        assert torch.equal(x, kept)
    assert program.report()["batch"] == "any"


@pytest.mark.parametrize("name", ["odd", "branches", "recurrent", "pre-activated"])
def test_every_kernel(name):
    model, inputs = make(name)
    for kernel in ("dense", "block"):
        program = SparseCPU(force={"*": kernel}).compile(model, inputs(1))
        assert kernel in {choice.kernel for choice in program.plan.layers}
        for batch in (1, 4):
            x = inputs(batch)
            assert equal(program(x), run(model, x))


def test_what_is_returned_stays(compiled):
    for name in ("resnet20", "branches", "recurrent"):
        model, inputs, program = compiled(name)
        first, x = inputs(2), inputs(2)
        answer = program(first)
        program(x)
        assert equal(answer, run(model, first))


class Handing(nn.Module):
    """Outputs that are inputs, constants, and what came before, by operators that make no copy."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x):
        y = self.linear(x)
        return (
            x,
            x.to(torch.float32),
            x.contiguous(),
            y.expand_as(y),
            y.contiguous(),
            y[:1],
            self.table,
            self.table[1:],
        )


def test_outputs_are_the_callers_own():
    model = Handing().eval()
    program = SPARSE.compile(model, torch.randn(2, 4))
    x = torch.randn(3, 4)
    wanted = [y.clone() for y in run(model, x)]
    for y in program(x):
        y.fill_(-7)
    found = program(x)
    program(torch.randn(3, 4))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def test_inputs_of_any_layout(compiled):
    model, inputs, program = compiled("resnet20")
    x = inputs(4)
    wanted = run(model, x)
    assert equal(program(x.to(memory_format=torch.channels_last)), wanted)
    assert equal(program(x.transpose(2, 3).contiguous().transpose(2, 3)), wanted)
    assert equal(program(torch.stack([x, x], 1)[:, 1]), wanted)
    assert equal(program(x.clone().requires_grad_()), wanted)
    assert not program(x.clone().requires_grad_()).requires_grad


def test_in_inference_mode_and_out_of_it():
    model, inputs = make("lenet")
    x = inputs(2)
    with torch.inference_mode():
        program = SPARSE.compile(model, x)
        assert equal(program(x), run(model, x))
    for batch in (2, 3):
        x = inputs(batch)
        assert equal(program(x), run(model, x))


def test_special_numbers(compiled):
    model, inputs, program = compiled("resnet20")
    x = inputs(2)
    x[0, 0, 3, 3], x[1, 1, 2, 2] = float("nan"), float("inf")
    assert torch.equal(program(x).isnan(), run(model, x).isnan())
    x = inputs(2)
    assert equal(program(x), run(model, x))  # nothing of it is left


@pytest.mark.parametrize("batch", [0, 17])
def test_unusual_batches(compiled, batch):
    for name in ("mlp", "resnet20"):
        model, inputs, program = compiled(name)
        x = inputs(batch)
        assert program(x).shape == run(model, x).shape


def test_wrong_inputs_are_named(compiled):
    _, inputs, program = compiled("lenet")
    for wrong in (inputs(2).double(), inputs(2)[0], torch.randn(2, 1, 28, 27), inputs(2).long()):
        with pytest.raises(ShapeError, match=r"got input 'images'.*expected float32 \(\*, 1, 28, 28\)"):
            program(wrong)
    with pytest.raises(ShapeError, match="meta"):
        program(inputs(2).to("meta"))
    for wrong in ((), (inputs(1), inputs(1)), ([inputs(1)],), (None,), ("x",), (3,)):
        with pytest.raises(UsageError):
            program(*wrong)
    assert program(inputs(2)).shape == (2, 10)


def test_the_model_may_change_afterwards():
    model, inputs = make("lstm")
    x = inputs(2)
    wanted = run(model, x)
    for kernel in ("sparse", "dense"):
        model, _ = make("lstm")
        program = SparseCPU(force={"*": kernel}).compile(model, x)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert equal(program(x), wanted)


def test_the_model_stays_as_it_is():
    model, inputs = make("resnet20")
    model.train()
    model.layer1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    SPARSE.compile(model, inputs(1))
    assert model.training
    assert not model.layer1.training
    assert model.layer2.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, pair, scale, *, extra=None):
        return [self.linear(pair["a"]) + pair["b"] * scale]


def test_nested_inputs():
    model = sparse_(Nested())
    pair = {"a": torch.randn(3, 4), "b": torch.randn(3, 4)}
    program = SPARSE.compile(model, pair, 2.0)
    assert equal(program(pair, 2.0), run(model, pair, 2.0))
    more = {key: torch.cat([x, x]) for key, x in pair.items()}
    assert equal(program(more, 2.0), run(model, more, 2.0))
    with pytest.raises(UsageError, match="part of the program"):
        program(pair, 3.0)
    with pytest.raises(UsageError, match="nested"):
        program({"a": pair["a"]}, 2.0)
    with pytest.raises(ShapeError):
        program({"a": pair["a"], "b": pair["b"][:2]}, 2.0)


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(len(x), 2, 2)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_that_cannot_be_free(batch):
    program = SPARSE.compile(nn.Sequential(nn.Linear(4, 4), Fixed()).eval(), torch.randn(batch, 4))
    assert program(torch.randn(batch, 4)).shape == (batch, 2, 2)
    assert "takes it for the number" in program.report()["batch"]
    with pytest.raises(ShapeError, match=rf"\({batch}, 4\).*the first dimension is fixed because"):
        program(torch.randn(3, 4))


class Undecided(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Selecting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        y = self.linear(x)
        return y[y > 0] * 2 + 1


class Choosing(nn.Module):
    def forward(self, x):
        return torch.cond(x.shape[0] > 2, lambda x: x + 1, lambda x: x - 1, (x,))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Undecided(), "torch.export can trace"),
        (Noisy(), "random"),
        (Choosing(), "a choice"),
        (Counting(), "writes into 'calls'"),
    ],
)
def test_what_cannot_be_traced_says_why(model, reason):
    with pytest.raises(GraphError, match=reason):
        SparseCPU(against=()).compile(model.eval(), torch.randn(2, 3))


def test_sizes_that_depend_on_values():
    model = Selecting().eval()
    program = SPARSE.compile(model, torch.randn(2, 3))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3)
        assert equal(program(x), run(model, x))


def test_a_program_that_computes_something_else_is_refused(monkeypatch):
    def wrong(traced, node):
        return [traced.constants[node.args[3].name].double()] * 2

    monkeypatch.setattr(fuse, "_scale_and_shift", wrong)
    model, inputs = make("vgg")
    with pytest.raises(RefusedError, match="relative error"):
        SPARSE.compile(model, inputs(2))


def test_settings_out_of_range():
    model, x = nn.Linear(2, 2).eval(), torch.zeros(1, 2)
    for wrong in (SparseCPU(threads=0), SparseCPU(rounds=1), SparseCPU(against=("numpy",))):
        with pytest.raises(UsageError):
            wrong.compile(model, x)
    with pytest.raises(UsageError, match="instruction set"):
        SparseCPU(force={"*": "sparse"}, instruction_set="mmx").compile(model, x)
    with pytest.raises(UsageError):
        gracile.compile(nn.Linear(2, 2), x, target=SPARSE)


def allocations(program, *inputs):
    """Bytes of every tensor that torch allots during one call, by its own account; without single numbers."""
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        program(*inputs)
    waiting, found = list(profile.profiler.kineto_results.experimental_event_tree()), []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == torch._C._profiler._EventType.Allocation and event.extra_fields.alloc_size > 8:
            found.append(event.extra_fields.alloc_size)
    return found


@pytest.mark.parametrize("name", ["resnet20", "lenet", "vgg", "mlp", "shared"])
def test_nothing_is_allotted_but_what_is_returned(compiled, name):
    model, inputs, program = compiled(name)
    for batch in (3, 1):
        x = inputs(batch)
        answer = pytree.tree_leaves(program(x))
        made = allocations(program, x)
        assert len(made) <= len(answer)
        assert sum(made) <= sum(y.nbytes + 64 for y in answer)
    assert len(allocations(model, x)) > len(answer)  # it is something that is counted


def test_buffers_are_shared_and_grow_with_the_batch(compiled):
    _, inputs, program = compiled("resnet20")
    program(inputs(1))
    memory = program.run._memory
    program(inputs(32))
    large = memory.nbytes
    for batch in (1, 7, 32):
        program(inputs(batch))
    assert memory.nbytes == large
    # Input, shortcut and output of a block; every value of its own would take ten times as much.
    assert large <= 4 * 32 * 16 * 16 * 16 * 4


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_the_models_memory_is_let_go(kernel):
    model, inputs = make("attending")
    weights = [StorageWeakRef(parameter.untyped_storage()) for parameter in model.parameters()]
    program = SparseCPU(force={"*": kernel}).compile(model, inputs(2))
    program(inputs(2))
    del model
    gc.collect()
    assert all(weight.expired() for weight in weights)


def test_packed_weights_replace_dense_ones():
    model, inputs = make("mlp")
    sparse_(model, 0.1)
    weights = sum(p.nbytes for p in model.parameters())
    assert SPARSE.compile(model, inputs(1)).nbytes < 0.6 * weights
    shared = SPARSE.compile(*(lambda m, i: (m, i(1)))(*make("shared")))
    kernels = {id(layer.kernel) for layer in shared.run.layers}
    assert len(shared.run.layers) == 3
    assert len(kernels) == 3  # one of them has a ReLU, one another size of map


def test_calls_from_several_threads(compiled):
    model, inputs, program = compiled("branches")
    given = [inputs(batch) for batch in (1, 2, 3, 4)]
    wanted = [run(model, x) for x in given]
    failed = []

    def work(k):
        for _ in range(20):
            try:
                equal(program(given[k]), wanted[k])
            except Exception as error:
                failed.append(error)

    threads = [Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_two_threads_give_the_same(compiled):
    model, inputs, _ = compiled("lenet")
    program = SparseCPU(threads=2, force={"*": "sparse"}).compile(model, inputs(2))
    before = torch.get_num_threads()
    x = inputs(3)
    assert equal(program(x), run(model, x))
    assert torch.get_num_threads() == before
    assert program.report()["threads"] == "2"


def test_costs_are_those_without_the_zeros(compiled):
    model, inputs, program = compiled("lenet")
    cost, full = program.cost(), gracile.cost.count(model, inputs(2))
    density = {c.layer: c.density for c in program.plan.layers}
    assert [row.layer for row in cost.rows] == ["conv1", "conv2", "fc1", "fc2", ""]
    for row in full.rows:
        left = next(r for r in cost.rows if r.layer == row.layer)
        if row.layer:
            assert left.macs == pytest.approx(row.macs * density[row.layer])
    assert cost.rows[-1].macs == 0
    assert cost.macs < 0.25 * full.macs

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gracile.errors import FileError, UsageError
from gracile.train.pack import pack, unpack

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"))
    | st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]).flatmap(
        lambda dtype: st.lists(st.integers(0, 1), max_size=3).map(lambda v: torch.tensor(v).to(dtype))
    )
)
keys = st.text(st.characters(codec="utf-8")) | st.integers(-(2**53) + 1, 2**53 - 1)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def equal(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@given(trees)
def test_what_is_packed_comes_back(tree):
    skeleton, tensors = pack(tree)
    through_json = json.loads(json.dumps(skeleton, allow_nan=False))
    assert equal(unpack(through_json, tensors), tree)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dict", "list", "tuple", "tensor", "int", "float", "x"]), inner, max_size=2
        )
    ),
    max_leaves=10,
)


@given(json_values)
def test_any_other_json_is_refused_or_plain_data(skeleton):
    try:
        found = unpack(skeleton, {"w": torch.zeros(1)})
    except FileError:
        return
    pack(found)  # whatever came back is made of the known types only


def test_a_path_spelled_twice_keeps_both_tensors():
    tree = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}}
    assert equal(unpack(*pack(tree)), tree)


@pytest.mark.parametrize("value", [object(), {1.5: 0}, {(1,): 0}, torch.eye(2).to_sparse(), b"bytes", {1, 2}])
def test_what_cannot_be_read_back_is_not_written(value):
    with pytest.raises(UsageError, match="state at 'here/0'"):
        pack({"here": [value]})


@pytest.mark.parametrize(
    "skeleton",
    [
        [],
        {},
        {"dict": [], "list": []},
        {"dict": {"a": 1}},
        {"dict": [["a"]]},
        {"dict": [["a", 1, 2]]},
        {"dict": [[["a"], 1]]},
        {"tensor": "missing"},
        {"tensor": 3},
        {"list": "abc"},
        {"int": "1e9"},
        {"int": 5},
        {"float": "one"},
        {"py/object": "os.system"},
        {"__reduce__": ["os.system", "true"]},
    ],
)
def test_malformed_skeletons_are_refused(skeleton):
    with pytest.raises(FileError):
        unpack(skeleton, {})


def test_endless_nesting_is_refused():
    skeleton: dict = {"list": []}
    for _ in range(100_000):
        skeleton = {"list": [skeleton]}
    with pytest.raises(FileError):
        unpack(skeleton, {})
    while skeleton["list"]:  # take it apart by hand: the interpreter would recurse
        skeleton = skeleton["list"].pop()

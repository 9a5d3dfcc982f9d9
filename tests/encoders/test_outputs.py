from dataclasses import dataclass

import numpy as np
import pytest
import torch

from contract.errors import ConfigError
from contract.schema import Field
from encoders.log_mel import LogMel
from encoders.outputs import Caught, autocast, in_float32, precisions, take, to_numpy

FIELDS = [Field(name=name, shape=(2,)) for name in ("a", "b", "c")]


@dataclass(frozen=True)
class Low:
    precision: str


@dataclass(frozen=True)
class Group:
    members: tuple[object, ...]


def test_fields_are_taken_in_the_order_of_the_model() -> None:
    assert [field.name for field in take(FIELDS, ("c", "a"), ("b",))] == ["a", "c"]


def test_default_fields_are_those_that_there_are() -> None:
    assert [field.name for field in take(FIELDS, None, ("b", "logits"))] == ["b"]


@pytest.mark.parametrize(
    ("names", "message"),
    [(("a", "d"), "take: 'd' is not among what the model gives: a, b, c"), ((), "take is empty: name some among")],
)
def test_taking_what_there_is_not_is_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        take(FIELDS, names, ("a",))


def test_precisions_are_found_in_members_of_members() -> None:
    group = Group(members=(Low("bfloat16"), Group(members=(Low("float16"), Low("float32"))), LogMel()))
    assert precisions(group) == {"bfloat16", "float16"}
    exact = in_float32(group)
    assert precisions(exact) == set()
    assert exact == Group(members=(Low("float32"), Group(members=(Low("float32"), Low("float32"))), LogMel()))


def test_encoder_without_a_precision_is_exact() -> None:
    assert precisions(LogMel()) == set()
    assert in_float32(LogMel()) == LogMel()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_products_are_computed_at_the_precision_again_and_again(precision: str) -> None:
    context, one = autocast("cpu", precision), torch.ones(2, 2)  # type: ignore[arg-type]
    for _ in range(2):
        with context:
            assert (one @ one).dtype == getattr(torch, precision)
    assert (one @ one).dtype == torch.float32


def test_floats_become_float32_and_whole_numbers_stay() -> None:
    outputs = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(2, dtype=torch.int32), "c": torch.ones(1)}
    arrays = to_numpy(outputs, ["a", "b"])
    assert {name: array.dtype for name, array in arrays.items()} == {"a": np.float32, "b": np.int32}


def test_outputs_of_modules_are_caught_until_they_are_cleared() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    caught = Caught(model, {"before": "0", "all": ""})
    made = model(torch.ones(1, 2))
    assert caught["all"] is made
    torch.testing.assert_close(caught["before"].relu(), made)
    caught.clear()
    with pytest.raises(KeyError):
        caught["before"]

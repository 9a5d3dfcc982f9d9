from itertools import product

from contract.views.augmentation import generator


def test_generator_is_the_same_on_every_machine() -> None:
    assert generator(7, "coco/12.jpg", 2).integers(2**32, size=3).tolist() == [4020483283, 3869131477, 817484699]


def test_seed_item_and_view_each_name_another_generator() -> None:
    # "1" and "11", or "/": no way of writing the three one after the other may mix them up.
    named = list(product((0, 1, 11, -1), ("", "a", "1", "1/1", "11", "é"), (1, 11)))
    assert len({generator(seed, item, view).random() for seed, item, view in named}) == len(named)

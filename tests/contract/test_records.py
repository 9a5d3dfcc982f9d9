import json

import pytest

from contract import records

TREE = {"name": "schön", "rate": 1e-05, "counts": [1, 2], "none": None, "deep": {"a": True}}


def test_record_is_read_as_it_was_written() -> None:
    assert records.load(records.dump(TREE)) == TREE


def test_record_is_json_whose_last_line_is_the_checksum() -> None:
    lines = records.dump(TREE).decode().splitlines()
    assert list(json.loads("\n".join(lines))) == [*TREE, "crc32c"]
    assert lines[-2].startswith(' "crc32c": ')


def test_every_flipped_bit_is_found_even_if_it_means_the_same() -> None:
    content = records.dump(TREE)
    assert b"1e-05" in content  # E for e is one bit, and the same number
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            with pytest.raises(records.DamagedRecordError):
                records.load(bytes(damaged))


def test_record_that_was_cut_short_or_written_on_is_refused() -> None:
    content = records.dump(TREE)
    for damaged in [*(content[:size] for size in range(len(content))), content + b"\n", content * 2]:
        with pytest.raises(records.DamagedRecordError):
            records.load(damaged)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"1", b'{"crc32c": 1}', b"\xff", b'{"a": 1}\n', b",\n"])
def test_what_is_no_record_is_refused(content: bytes) -> None:
    with pytest.raises(records.DamagedRecordError):
        records.load(content)


def test_sealed_tree_may_be_spelt_otherwise_but_not_changed() -> None:
    sealed = records.seal(TREE)
    assert records.unseal(json.loads(json.dumps(dict(reversed(sealed.items()))))) == TREE
    with pytest.raises(records.DamagedRecordError, match="changed after it was written"):
        records.unseal(sealed | {"rate": 1e-06})
    with pytest.raises(records.DamagedRecordError, match="list where an object belongs"):
        records.unseal([])

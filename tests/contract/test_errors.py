import pytest

from contract.errors import DataError, one_line


def test_user_error_leaves_as_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, one_line():
        raise DataError("two\n  lines")
    assert caught.value.code == DataError.exit_code != 0
    assert capsys.readouterr().err == "error: two lines\n"


def test_full_disk_leaves_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line():
        raise OSError(28, "No space left on device", "store/x")
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'store/x'\n"


def test_programming_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), one_line():
        _ = 1 / 0

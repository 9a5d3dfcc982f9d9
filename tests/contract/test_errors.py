import pytest

from contract.errors import ConfigError, DataError, one_line, run_command_line


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


def test_mistake_in_the_command_line_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli import app

    with pytest.raises(SystemExit) as caught:
        run_command_line(app, "pipeline", ["plan", "--nope"])
    assert caught.value.code == ConfigError.exit_code
    error = capsys.readouterr().err
    assert error.startswith("error: No such option: --nope")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"]])
def test_help_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli import app

    with pytest.raises(SystemExit) as caught:
        run_command_line(app, "pipeline", arguments)
    assert caught.value.code == 0
    assert "Usage: pipeline" in capsys.readouterr().out

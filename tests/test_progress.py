"""What programs say while there is nothing to do but wait."""

import time

from bagssl_jax import progress


def test_a_long_wait_is_said_in_one_line_and_a_short_one_is_not(capsys, monkeypatch):
    with progress.waiting('blinking'):
        pass
    monkeypatch.setattr(progress, 'SHORT', 0.01)
    with progress.waiting('compiling the training step'):
        deadline = time.monotonic() + 30
        err = ''
        while not err.endswith('\n') and time.monotonic() < deadline:
            time.sleep(0.01)
            err += capsys.readouterr().err
    assert err == 'compiling the training step ...\n'


def test_other_processes_than_the_first_say_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, 'SHORT', 0.0)
    monkeypatch.setattr(progress.processes, 'is_first', lambda: False)
    with progress.waiting('compiling the training step'):
        time.sleep(0.1)
    assert capsys.readouterr().err == ''

import sys

import jax
import pytest

from bagssl_jax import cli
from bagssl_jax.errors import out_of_memory


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        (
            'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
            'temporaries (546.02G) exceeds available HBM (15.75G).',
            '546.02 GiB of memory are needed, 530.27 more than the 15.75 of a device: fewer images',
        ),
        (
            'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory '
            'space hbm. Used 17.52G of 15.75G hbm. Exceeded hbm capacity by 1.77G.',
            '17.52 GiB of memory are needed, 1.77 more than the 15.75 of a device: fewer images',
        ),
        (
            'RESOURCE_EXHAUSTED: Out of memory allocating 47244640256 bytes.',
            'out of memory, asked for 44.00 GiB at once: fewer images or patches at a time',
        ),
        ('RESOURCE_EXHAUSTED: nobody knows', 'out of memory: fewer images or patches at a time'),
    ],
)
def test_out_of_memory_says_how_much_and_what_helps(text, said):
    line = out_of_memory(jax.errors.JaxRuntimeError(text))
    assert line.startswith(said)
    assert 'data.batch_size, patches.count' in line
    assert 'train.accumulate=2' in line
    assert 'encoder.dtype=bfloat16' in line
    assert '\n' not in line


def test_python_runs_out_of_memory_too():
    assert out_of_memory(MemoryError()).startswith('out of memory: ')


@pytest.mark.parametrize('error', [jax.errors.JaxRuntimeError('INTERNAL: no'), ValueError('no')])
def test_other_errors_are_not_out_of_memory(error):
    assert out_of_memory(error) is None


def test_a_program_that_runs_out_of_memory_ends_in_one_line(monkeypatch, capsys):
    def program():
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.')

    monkeypatch.setattr(sys, 'argv', ['program'])
    with pytest.raises(SystemExit) as end:
        cli.run_command(lambda: program, 'usage', outlook='', options={})
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count('\n')) == ('', 1)
    assert err.startswith('error: out of memory, asked for')


def test_a_program_with_another_error_shows_where_it_comes_from(monkeypatch):
    def program():
        raise ValueError('of the program itself')

    monkeypatch.setattr(sys, 'argv', ['program'])
    with pytest.raises(ValueError, match='of the program itself'):
        cli.run_command(lambda: program, 'usage', outlook='', options={})

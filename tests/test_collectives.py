import pytest

from bagssl_jax.benchmarks.collectives import collective_bytes, sent_bytes

# As jax 0.10.2 prints them for a v5e slice and for CPUs, shortened.
ALL_REDUCE = (
    '  %all-reduce = (f32[256]{0:T(256)}, f32[128]{0:T(128)}) all-reduce(%get-tuple-element.4, '
    '%get-tuple-element.3), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, '
    'to_apply=%region_1.0, metadata={op_name="jit(f)/all-reduce(f32[9])"}'
)
ALL_GATHER = (
    '  ROOT %all-gather.4 = bf16[1024,256]{1,0:T(8,128)S(1)} all-gather(%get-tuple-element.7), '
    'channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}'
)
REDUCE_SCATTER = (
    '  %reduce_scatter.7 = f32[128,256]{1,0:T(8,128)S(1)} reduce-scatter(%all-gather.4), '
    'channel_id=1, replica_groups={}, use_global_device_ids=true, dimensions={0}'
)
PERMUTE = (
    '  %collective-permute-start = (f32[128,256]{1,0:T(8,128)S(1)}, '
    'f32[128,256]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) '
    'collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}\n'
    '  %collective-permute-done = f32[128,256]{1,0:T(8,128)S(1)} '
    'collective-permute-done(%collective-permute-start), metadata={op_name="ppermute"}\n'
    '  %sum = f32[]{:T(128)} reduce(%collective-permute-done, %zero), to_apply=%region_6.0'
)
ALL_TO_ALL = (
    '  %all_to_all.7 = (u8[4,2]{1,0}, u8[4,2]{1,0}) all-to-all(%a, %b), replica_groups={{0,1}}'
)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (ALL_REDUCE, {'all-reduce': (256 + 128) * 4}),
        (ALL_GATHER, {'all-gather': 1024 * 256 * 2}),
        (REDUCE_SCATTER.replace('{}', '{{0,1,2,3}}'), {'reduce-scatter': 4 * 128 * 256 * 4}),
        (REDUCE_SCATTER.replace('{}', '[2,4]<=[8]'), {'reduce-scatter': 4 * 128 * 256 * 4}),
        (PERMUTE, {'collective-permute': 128 * 256 * 4}),
        (ALL_TO_ALL, {'all-to-all': 16}),
        ('  %sum = f32[]{:T(128)} add(%all-reduce, %all-gather.4)', {}),
        ('  %p = pred[] all-reduce(%x), to_apply=%or', {'all-reduce': 1}),
        (f'{ALL_REDUCE}\n{ALL_REDUCE}', {'all-reduce': 2 * (256 + 128) * 4}),
    ],
)
def test_bytes_by_kind(text, expected):
    assert collective_bytes(text) == expected


def test_a_reduce_scatter_among_nobody_knows_whom_is_an_error():
    with pytest.raises(ValueError, match='replica_groups'):
        collective_bytes(REDUCE_SCATTER)


def test_what_a_device_sends():
    assert sent_bytes({'all-reduce': 80, 'all-gather': 80, 'collective-permute': 5}, 8) == 140 + 75
    assert sent_bytes({'all-reduce': 80}, 1) == 0

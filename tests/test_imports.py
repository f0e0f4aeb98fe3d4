"""The house: imports go strictly downward, and no room knows its neighbour."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / 'bagssl_jax'

# From the top. A module imports from lower floors, and from its own room.
FLOORS = [
    [
        *('main', 'probe', 'analyze', 'report', 'study', 'benchmark', 'prepare'),
        *('import_torch', 'export', 'embed'),
    ],
    ['cli'],
    ['command_line'],
    ['options'],
    ['analysis', 'benchmarks', 'studies'],
    ['training', 'evaluation', 'interop'],
    ['embedding', 'probes', 'tracking'],
    [
        'data',
        'objectives',
        'models',
        'augment',
        'checkpoints',
        'device_crops',
        'group',
        'records',
        'reporting',
    ],
    ['keys', 'memory', 'parallel', 'runs', 'folders'],
    ['progress'],
    ['processes'],
    ['configurations', 'manifests', 'locks'],
    ['defaults'],
    ['ranges', 'storage'],
    ['errors', 'provenance', 'signals'],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ONLY_IN = {
    'orbax': {'checkpoints'},
    'grain': {'data'},
    'tensorflow_datasets': {'data'},
    'matplotlib': {'analysis', 'evaluation'},
    'sklearn': {'analysis'},
    'torch': {'interop'},
    'safetensors': {'interop'},
    'onnx': {'interop'},
    'wandb': {'tracking'},
    'mlflow': {'tracking'},
    'pyarrow': {'embedding'},
    'absl': {'command_line', 'data', 'options'},
    'ml_collections': {
        'command_line',
        'main',
        'probe',
        'analyze',
        'benchmark',
        'training',
        'evaluation',
        'analysis',
        'benchmarks',
        'defaults',
    },
    'PIL': {'data', 'benchmarks', 'reporting'},
}


def imports():
    """Every import of the package, as (module, what it imports) in dotted names."""
    edges = []
    for path in sorted(PACKAGE.rglob('*.py')):
        module = '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts)
        module = module.removesuffix('.__init__')
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                edges += [(module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f'{module} imports relatively'
                for alias in node.names:
                    full = f'{node.module}.{alias.name}'
                    edges.append((module, full if is_module(full) else node.module))
    return edges


def is_module(name):
    path = PACKAGE.parent / pathlib.Path(*name.split('.'))
    return path.is_dir() or path.with_suffix('.py').exists()


def room(module):
    """The room of a module of the package: its file or folder right below bagssl_jax."""
    return module.split('.')[1] if '.' in module else None


def inner_edges():
    return [(a, b) for a, b in imports() if b.split('.')[0] == 'bagssl_jax' and room(a) and room(b)]


def test_every_room_has_a_floor():
    rooms = {p.stem for p in PACKAGE.iterdir() if p.suffix == '.py' or any(p.glob('*.py'))}
    assert rooms - {'__init__', '__pycache__'} == set(FLOOR_OF)


def test_imports_go_strictly_downward_between_rooms():
    edges = inner_edges()
    assert len(edges) > 40
    upward = [
        (a, b) for a, b in edges if room(a) != room(b) and FLOOR_OF[room(a)] >= FLOOR_OF[room(b)]
    ]
    assert upward == []


def test_probes_know_arrays_alone():
    known = {room(b) for a, b in inner_edges() if room(a) == 'probes'}
    assert known == {'probes', 'parallel', 'errors'}


def test_training_and_evaluation_meet_in_the_checkpoint():
    known = {room(a): set() for a, _ in inner_edges()}
    for a, b in inner_edges():
        known[room(a)].add(room(b))
    assert not known['training'] & {'evaluation', 'embedding', 'probes'}
    assert 'training' not in known['evaluation']


def test_no_imports_in_a_circle():
    edges = inner_edges()
    # A package's __init__ is not what its own modules import when they name a sibling.
    remaining = {a for edge in edges for a in edge}
    while remaining:
        leaves = {
            module
            for module in remaining
            if not any(a == module and b in remaining and a != b for a, b in edges)
        }
        assert leaves, f'imports in a circle among {sorted(remaining)}'
        remaining -= leaves


def test_libraries_stay_in_their_rooms():
    for module, imported in imports():
        library = imported.split('.')[0]
        if library in ONLY_IN:
            assert room(module) in ONLY_IN[library], f'{module} imports {library}'


def test_entry_points_are_short():
    for name in FLOORS[0]:
        assert len((PACKAGE / f'{name}.py').read_text().splitlines()) < 60

"""The page: its head, its way through, its sections."""

import importlib.resources
from collections.abc import Sequence

from bagssl_jax.reporting.accuracy import accuracy_section
from bagssl_jax.reporting.curves import training_section
from bagssl_jax.reporting.found import Found
from bagssl_jax.reporting.gaps import gaps_section, problems_section
from bagssl_jax.reporting.looks import looks_section
from bagssl_jax.reporting.markup import Element, element, render
from bagssl_jax.reporting.overview import overview
from bagssl_jax.reporting.robustness import robustness_section
from bagssl_jax.reporting.settings import settings_section

NOTHING = {
    'training': 'Nothing was logged of a training.',
    'accuracy': 'Nothing was probed yet.',
    'looks': 'No analysis has drawn anything yet.',
    'settings': 'The configuration is not known.',
}


def page(runs: Sequence[Found]) -> bytes:
    """One HTML document of one run, or of two beside each other, that needs nothing else."""
    problems = []
    looks = looks_section(runs, problems)
    sections = {
        'overview': ('Overview', overview(runs)),
        'accuracy': ('Accuracy', accuracy_section(runs)),
        'robustness': ('Robustness', robustness_section(runs)),
        'looks': ('Pictures', looks),
        'training': ('Training', training_section(runs)),
        'settings': ('Settings', settings_section(runs)),
        'gaps': ('Not measured', gaps_section(runs)),
        'problems': ('Problems', problems_section(runs, problems)),
    }
    for name in ('robustness', 'problems'):
        if not sections[name][1]:
            del sections[name]
    title = ' and '.join(run.name for run in runs)
    kind = 'Two runs, side by side' if len(runs) > 1 else 'Report of a run'
    body = element(
        'body',
        {},
        element('a', {'class': 'skip', 'href': '#main'}, 'To the content'),
        element(
            'header',
            {},
            element('p', {'class': 'kind'}, kind),
            element('h1', {}, title),
            element(
                'p', {'class': 'place'}, ' \N{MIDDLE DOT} '.join(run.directory for run in runs)
            ),
        ),
        element(
            'nav',
            {'aria-label': 'Sections'},
            element(
                'ol',
                {},
                [
                    element('li', {}, element('a', {'href': f'#{name}'}, heading))
                    for name, (heading, _) in sections.items()
                ],
            ),
        ),
        element(
            'main',
            {'id': 'main', 'tabindex': '-1'},
            [_section(name, *section) for name, section in sections.items()],
        ),
        element(
            'footer', {}, element('p', {}, 'Made by bagssl_jax of the files of the run alone.')
        ),
    )
    return render(element('html', {'lang': 'en'}, _head(title), body))


def _section(name: str, heading: str, content: Sequence[Element]) -> Element:
    title = element('h2', {'id': f'{name}-title'}, heading)
    content = content or [element('p', {'class': 'none'}, NOTHING[name])]
    return element('section', {'id': name, 'aria-labelledby': f'{name}-title'}, title, content)


def _head(title: str) -> Element:
    style = importlib.resources.files(__package__).joinpath('report.css').read_text('utf-8')
    return element(
        'head',
        {},
        element('meta', {'charset': 'utf-8'}),
        element('meta', {'name': 'viewport', 'content': 'width=device-width, initial-scale=1'}),
        element('meta', {'name': 'color-scheme', 'content': 'light dark'}),
        # Whatever a run's files hold, nothing is fetched and nothing runs.
        element(
            'meta',
            {
                'http-equiv': 'Content-Security-Policy',
                'content': "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
            },
        ),
        element('title', {}, f'{title}: bagssl_jax'),
        element('style', {}, style),
    )

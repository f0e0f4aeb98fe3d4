"""Headless Chromium, spoken to by the DevTools protocol over a pair of pipes."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

FLAGS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--hide-scrollbars',
    '--remote-debugging-pipe',
)
NAMES = ('chromium', 'chromium-browser', 'google-chrome')
PATIENCE = 60  # seconds for an answer


def find_chromium():
    """Its path; None where it is not installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a browser."""

    def __init__(self, send_to, read_from):
        self._send_to, self._read_from = send_to, read_from
        self._rest, self._number, self._session = b'', 0, None
        self.events = []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        attached = self.call('Target.attachToTarget', targetId=target, flatten=True)
        self._session = attached['sessionId']
        for domain in ('Page', 'Network', 'Runtime', 'Log'):
            self.call(f'{domain}.enable')

    def call(self, method, **parameters):
        """What the browser answers; events that come before it are kept."""
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': parameters}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._send_to, json.dumps(message).encode() + b'\0')
        while (answer := self._next()).get('id') != self._number:
            self.events.append(answer)
        assert 'error' not in answer, (method, answer['error'])
        return answer['result']

    def _next(self):
        deadline = time.monotonic() + PATIENCE
        while b'\0' not in self._rest:
            assert time.monotonic() < deadline, 'the browser does not answer'
            part = os.read(self._read_from, 2**20)
            assert part, 'the browser has ended'
            self._rest += part
        message, _, self._rest = self._rest.partition(b'\0')
        return json.loads(message)

    def open(self, path, *, width, theme):
        """Shows a file at a width, in a theme; returns when everything is there."""
        metrics = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': width < 600}
        self.call('Emulation.setDeviceMetricsOverride', **metrics)
        feature = {'name': 'prefers-color-scheme', 'value': theme}
        self.call('Emulation.setEmulatedMedia', features=[feature])
        self.events.clear()
        self.call('Page.navigate', url=pathlib.Path(path).resolve().as_uri())
        while not any(event.get('method') == 'Page.loadEventFired' for event in self.events):
            self.events.append(self._next())

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        found = self.call(
            'Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True
        )
        assert 'exceptionDetails' not in found, found
        return found['result'].get('value')

    def press(self, key, code):
        """Presses a key, as a person does."""
        for kind in ('keyDown', 'keyUp'):
            self.call('Input.dispatchKeyEvent', type=kind, key=key, windowsVirtualKeyCode=code)

    def requested(self):
        """Every address that was asked for since the file was opened."""
        sent = 'Network.requestWillBeSent'
        return [e['params']['request']['url'] for e in self.events if e.get('method') == sent]

    def screenshot(self, path):
        """A PNG of the whole page."""
        found = self.call('Page.captureScreenshot', captureBeyondViewport=True)
        pathlib.Path(path).write_bytes(base64.b64decode(found['data']))


@contextlib.contextmanager
def browser():
    """A page of a new Chromium, which ends with the context."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        ours, theirs = os.pipe(), os.pipe()  # to the browser, from it
        # It wants them as 3 and 4. A shell makes them so: forking with JAX would be warned of.
        renamed = f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        process = subprocess.Popen(
            ['bash', '-c', renamed, find_chromium(), *FLAGS, f'--user-data-dir={profile}'],
            pass_fds=(ours[0], theirs[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Page(ours[1], theirs[0])
        finally:
            process.terminate()
            process.wait(timeout=30)
            for end in (*ours, *theirs):
                os.close(end)

"""Looking at something while something else is done."""

import threading


class Watch:
    """Runs watch(), in a thread of its own, while the block goes on; it returns soon after is_over() says so."""

    def __init__(self):
        self._over = threading.Event()
        self._thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def is_over(self):
        return self._over.is_set()

    def watch(self):
        raise NotImplementedError

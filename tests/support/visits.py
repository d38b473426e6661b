"""Pages that are served, and pages in a real browser that must complain of nothing."""

import threading
from contextlib import contextmanager


@contextmanager
def running(server):
    """A server of pages, while a thread serves."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def visiting(browser, expected=None):
    """A function that opens an address in a context of its own.

    At the end no page may have complained, except by messages of the console in which the pattern
    `expected` is found.
    """
    contexts, complaints = [], []

    def complain(message):
        if expected is None or not expected.search(message.text):
            complaints.append(message.text)

    def open_page(address, width=1280, **options):
        viewport = {"width": width, "height": 900}
        context = browser.new_context(viewport=viewport, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []

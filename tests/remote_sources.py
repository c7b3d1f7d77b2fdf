"""Where data sets lie that are not on this machine: a web server with parts of files, and a file system that fails."""

import contextlib
import functools
import http.server
import os
import threading
from urllib.parse import unquote, urlsplit

from fsspec.implementations.memory import MemoryFileSystem


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, whole or in parts. `server.log` has what was sent: (path, bytes, whether it is a part)."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.refused():
            return
        path = self.translate_path(self.path)
        asked = self.headers.get("Range", "") if self.server.has_parts else ""
        if not asked or os.path.isdir(path) or not os.path.exists(path):
            super().do_GET()
            if os.path.isfile(path):
                self.server.log.append((self.name, os.path.getsize(path), False))
            return
        size = os.path.getsize(path)
        start, end = asked.removeprefix("bytes=").split("-")
        start, end = int(start), min(int(end) + 1 if end else size, size)
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(end - start)
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        self.wfile.write(data)
        self.server.log.append((self.name, len(data), True))

    def do_HEAD(self):
        if not self.refused():
            super().do_HEAD()

    @property
    def name(self):
        return unquote(urlsplit(self.path).path)

    def refused(self):
        """Whether an error was sent: those that the test wants."""
        for part, status in self.server.errors.items():
            if part in self.name:
                self.send_error(status)
                return True
        return False

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def served(folder, has_parts=True):
    """A web server on a folder; `server.url` is its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.daemon_threads = True
    server.log, server.errors, server.has_parts = [], {}, has_parts
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Failing(MemoryFileSystem):
    """Files in memory; of the requests for what is in them some fail: those whose numbers, from 1, are in `failing`."""

    protocol = "failing"
    store, pseudo_dirs = {}, [""]
    asked, failing = 0, range(0)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("failing://"))

    @classmethod
    def reset(cls, failing=range(0), error=OSError("the line is dead")):  # noqa: B008
        cls.asked, cls.failing, cls.error = 0, failing, error

    def _fail(self):
        Failing.asked += 1
        if Failing.asked in Failing.failing:
            raise Failing.error

    def cat_file(self, path, start=None, end=None, **options):
        self._fail()
        return super().cat_file(path, start, end, **options)

    def get_file(self, path, to, **options):
        self._fail()
        return super().get_file(path, to, **options)

"""A web server on this machine, for what would otherwise need a network."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass
class Server:
    """`url` answers with `files[path]`; `asked` lists what was asked for."""

    url: str
    files: Mapping[str, bytes]
    asked: list[str] = field(default_factory=list)
    cut: int = 0
    """Bytes that are announced but never sent."""


@contextlib.contextmanager
def serving(files: Mapping[str, bytes], cut: int = 0) -> Iterator[Server]:
    """A server for `files` (path -> content), with the headers that the Hugging Face hub sends."""
    server = Server("", files, cut=cut)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = self._head()
            self.wfile.write(content[: len(content) - server.cut])

        def do_HEAD(self) -> None:
            self._head()

        def _head(self) -> bytes:
            server.asked.append(f"{self.command} {self.path}")
            content = server.files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            return content or b""

        def log_message(self, *args: object) -> None:
            del args

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server.url = f"http://127.0.0.1:{listener.server_port}"
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        yield server
        listener.shutdown()
        thread.join()

"""A small server that speaks as Amazon's metadata service of a machine, version 2."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MetadataServer:
    """Answers questions that carry a token it gave out; `reclaim` makes it say that the machine is taken back."""

    def __init__(self) -> None:
        self.notice: bytes | None = None
        self.tokens: set[str] = set()
        self.fails = False
        self.asked = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def reclaim(self, seconds: float) -> float:
        """Give notice that the machine goes in so many seconds, whole ones as Amazon does; return when."""
        until = int(time.time() + seconds)
        said = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.notice = json.dumps({"action": "terminate", "time": said}).encode()
        return until

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                wanted = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                token = f"token-{len(service.tokens)}"
                service.tokens.add(token)
                self._answer(200 if wanted else 400, token.encode())

            def do_GET(self) -> None:
                service.asked += 1
                if self.headers["X-aws-ec2-metadata-token"] not in service.tokens:
                    self._answer(401)
                elif service.fails:
                    self._answer(503)
                elif self.path != "/latest/meta-data/spot/instance-action" or service.notice is None:
                    self._answer(404)
                else:
                    self._answer(200, service.notice)

            def _answer(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextmanager
def metadata() -> Iterator[MetadataServer]:
    """A server that runs inside the block."""
    server = MetadataServer()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()

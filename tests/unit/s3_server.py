"""An S3 server over HTTP with a bucket in memory; a test chooses the refused requests."""

import threading
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Answer = tuple[int, str, Mapping[str, str], str]
"""Status, code, headers and message of a refusal."""
_OPERATIONS = {
    "POST": "delete several", "GET": "read", "HEAD": "head", "PUT": "write", "DELETE": "delete",
}  # fmt: skip


class Server:
    """Runs inside a `with` block."""

    def __init__(self) -> None:
        self.reset()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.state = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._http.serve_forever)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def reset(self) -> None:
        """Forget all objects and refusals."""
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.refuse: Callable[[str, str], Answer | None] = lambda *_: None
        """Returns the refusal of an operation on a key; None to serve the request."""
        self.page: bytes | None = None
        """Body of the answer to every request; None to serve requests."""
        self.ignores_conditions = False
        self.skew_s = 0.0
        self.seen: list[str] = []

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def state(self) -> Server:
        state: Server = self.server.state  # type: ignore[attr-defined]
        return state

    def log_message(self, *words: object) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time.time() + self.state.skew_s, usegmt=True)

    def _handle(self) -> None:
        url = urlsplit(self.path)
        self.key = unquote(url.path.partition("bucket")[2][1:])
        self.query = parse_qs(url.query, keep_blank_values=True)
        self.body = self._body()
        operation = self._operation()
        self.state.seen.append(operation)
        refusal = self.state.refuse(operation, self.key)
        if self.state.page is not None:
            self._answer(200, self.state.page, {"Content-Type": "text/html"})
        elif refusal is not None:
            self._error(*refusal)
        else:
            getattr(self, f"_{operation.replace(' ', '_')}")()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle  # noqa: N815

    def _operation(self) -> str:
        if "uploads" in self.query or "uploadId" in self.query:
            return "parts"
        if "list-type" in self.query:
            return "list"
        return "create" if self.headers.get("If-None-Match") else _OPERATIONS[self.command]

    def _list(self) -> None:
        items = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size></Contents>"
            for name, data in sorted(self.state.objects.items())
            if name.startswith(self.query["prefix"][0])
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
        self._answer(200, text.encode())

    def _delete_several(self) -> None:
        for part in self.body.decode().split("<Key>")[1:]:
            self.state.objects.pop(part.partition("</Key>")[0], None)
        self._answer(200, b"<DeleteResult/>")

    def _delete(self) -> None:
        self.state.objects.pop(self.key, None)
        self._answer(204)

    def _write(self) -> None:
        self.state.objects[self.key] = self.body
        self._answer(200, headers={"ETag": '"e"'})

    def _create(self) -> None:
        if self.key in self.state.objects and not self.state.ignores_conditions:
            self._error(412, "PreconditionFailed", {}, "")
        else:
            self._write()

    def _read(self) -> None:
        if self.key in self.state.objects:
            self._answer(200, self.state.objects[self.key], {"ETag": '"e"'})
        else:
            self._error(404, "NoSuchKey", {}, "")

    _head = _read

    def _parts(self) -> None:
        if "uploads" in self.query:
            self.state.parts[self.key] = {}
            start = b"<InitiateMultipartUploadResult><UploadId>1</UploadId>"
            self._answer(200, start + b"</InitiateMultipartUploadResult>")
        elif self.command == "PUT":
            self.state.parts[self.key][int(self.query["partNumber"][0])] = self.body
            self._answer(200, headers={"ETag": '"e"'})
        else:
            parts = self.state.parts.pop(self.key)
            self.state.objects[self.key] = b"".join(parts[number] for number in sorted(parts))
            end = b"<CompleteMultipartUploadResult><ETag>e</ETag>"
            self._answer(200, end + b"</CompleteMultipartUploadResult>")

    def _answer(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str, headers: Mapping[str, str], message: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        self._answer(status, text.encode(), {"Content-Type": "application/xml", **headers})

    def _body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in (self.headers.get("Content-Encoding") or ""):
            return data
        plain = b""
        while True:
            size, _, data = data.partition(b"\r\n")
            number = int(size.split(b";")[0], 16)
            if not number:
                return plain
            plain, data = plain + data[:number], data[number + 2 :]

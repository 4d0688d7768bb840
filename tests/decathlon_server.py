"""A small Decathlon task, and a server on localhost that it can be fetched from."""

import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME = "Task04_Hippocampus"


def make_task(parent: Path, name: str = NAME, cases: int = 5) -> Path:
    """Write a task folder of empty images."""
    folder = parent / name
    names = [f"case_{number:03d}" for number in range(cases)]
    for subset in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / subset).mkdir(parents=True)
        for case in names if subset != "imagesTs" else ["test_001"]:
            (folder / subset / f"{case}.nii.gz").touch()
            (folder / subset / f"._{case}.nii.gz").touch()  # as macOS leaves behind
    described: dict[str, Any] = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "numTraining": cases,
        "training": [],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


class Server:
    """Serves one archive; can break off in the middle, or fall asleep there."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.break_after: int | None = None
        self.asleep: threading.Event | None = None
        self.ranges: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if not handler.path.endswith(f"/{NAME}.tar"):
            handler.send_error(404, "Not Found")
            return
        wished = handler.headers.get("Range")
        self.ranges.append(wished)
        start = int(wished.removeprefix("bytes=").rstrip("-")) if wished else 0
        rest = self.content[start:]
        if wished and not rest:
            handler.send_error(416)
            return
        handler.send_response(206 if wished else 200)
        handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        handler.wfile.write(rest[: self.break_after])
        if self.asleep is not None:
            self.asleep.wait(30)

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def archive_of(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder, arcname=folder.name)
    return buffer.getvalue()

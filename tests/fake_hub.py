"""A hub on this machine, as far as its client needs one: repositories are made, commits taken, files given."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Files by repository; `url` is for HF_ENDPOINT."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.split("?")[0].strip("/").split("/")
        if self.path.startswith("/api/repos/create"):
            entry = json.loads(data)
            name = "/".join(filter(None, (entry.get("organization"), entry["name"])))
            self.server.files.setdefault(name, {})
            self._json({"url": f"{self.server.url}/{name}", "id": name})
        elif "preupload" in parts:
            paths = [file["path"] for file in json.loads(data)["files"]]
            self._json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif "commit" in parts:
            self._commit("/".join(parts[2:4]), data)
        else:  # the card's check
            self._json({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":
            self._tell("/".join(parts[2:4]), is_tree="tree" in parts)
            return
        data = self.server.files.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
        if data is None:
            self._json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            self._send(data, 200, {"X-Repo-Commit": _COMMIT, "ETag": f'"{abs(hash(data)):x}"'})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _commit(self, name: str, data: bytes) -> None:
        for line in data.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.files[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{_COMMIT}", "commitOid": _COMMIT})

    def _tell(self, name: str, *, is_tree: bool) -> None:
        files = self.server.files.get(name)
        if files is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif is_tree:
            self._json(
                [{"type": "file", "path": path, "size": len(data), "oid": "0" * 40} for path, data in files.items()]
            )
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": _COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _json(self, entry: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(entry).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass

"""`/`: the web page, a chat and a view for those who run the server. It is served as it lies in static/page.

Law: no build step and no other host. What the page may load and reach is this server, and its policy says so to the
browser. The files are read once, and only those that are there then have a path: no path of a request opens a file.
"""

import hashlib
from pathlib import Path

from flask import Blueprint, Response, request

from worker.web.description import describes

blueprint = Blueprint("page", __name__)

FOLDER = Path(__file__).parent / "static" / "page"
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}

# A model's text that got into the page as markup after all could load nothing, send nothing elsewhere, run nothing.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept, and asked for again each time: a page and modules of two versions of the server would not fit each other.
    "Cache-Control": "no-cache",
}
_HTML = (FOLDER / "index.html").read_bytes()
_FILES = {
    f"/page/{path.name}": (path.read_bytes(), MEDIA_TYPES[path.suffix])
    for path in sorted(FOLDER.iterdir())
    if path.suffix in MEDIA_TYPES
}
# A browser opens them before anybody can enter a key, and they say what everybody can read in the sources.
PATHS = ("/", *_FILES)


@blueprint.get("/")
@describes("Server", answers={200: "text/html"})
def page() -> Response:
    """The web page: a chat, and how the server is doing. It asks no other host for anything."""
    return _answer(_HTML, "text/html")


def _file() -> Response:
    return _answer(*_FILES[request.path])


def _answer(data: bytes, media_type: str) -> Response:
    response = Response(data, mimetype=media_type, headers=_HEADERS)
    response.set_etag(hashlib.sha256(data).hexdigest()[:32])
    response.make_conditional(request)
    return response


for _path in _FILES:  # parts of the page and no API: they do not describe themselves, and /openapi.json leaves them out
    blueprint.add_url_rule(_path, "file", _file)

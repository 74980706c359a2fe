"""Who asks: the API key in the head of a request, and the name that it stands for.

Law: whoever is not known is answered before anything else of the request is looked at, its body and its route included.
The key goes no further than this file; its name goes to jobs, limits and the log.
"""

from flask import Flask, g, request

from worker.errors import Unauthorized
from worker.keys import ApiKeys
from worker.web import page

# Platforms that start and stop the server ask the first three, and they say nothing of anybody's requests. The others
# say what everybody can read in the sources, and a browser opens them, which sends no key. Everything else needs one,
# where there are keys: also what does not exist, and /metrics, which monitors can send one to.
OPEN_PATHS = ("/health", "/ready", "/v1/ready", "/docs", "/openapi.json", *page.PATHS)


def install(app: Flask, keys: ApiKeys) -> None:
    """Let in only who has one of these keys; everybody, if there are none."""

    def check_key() -> None:
        if request.path not in OPEN_PATHS:
            g.client = _name_of(keys)

    if keys:
        app.before_request(check_key)


def client() -> str:
    """The name of the client whose request this is; empty where no key is needed."""
    name: str = g.get("client", "")
    return name


def _name_of(keys: ApiKeys) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    # Other schemes are for somebody in front of us.
    sent = {token.strip()} if scheme.lower() == "bearer" else set()
    if (key := request.headers.get("X-Api-Key")) is not None:
        sent.add(key.strip())
    if not sent:
        raise Unauthorized("there is no API key; send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`")
    if len(sent) > 1:
        raise Unauthorized("Authorization and x-api-key have different API keys; send one of them")
    name = keys.name_of(sent.pop())
    if name is None:
        raise Unauthorized("the API key is not known here; ask whoever runs this server for one")
    return name

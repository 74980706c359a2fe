"""Which web pages may use the server from a browser: none, unless the settings name them.

Our own and not Flask-CORS: what is needed is this page, and a browser asks in front of every key.

Law: `Access-Control-Allow-Credentials` is never sent. Whoever asks has a key and sends it; a cookie, or a password that
the browser knows, would be used by pages that do not know it.

Source: the Fetch standard, "CORS protocol".
"""

from flask import Flask, Response, request

METHODS = "GET, POST, DELETE"
# What a page may read of an answer beside its body.
EXPOSED = ", ".join(
    [
        "request-id",
        "x-request-id",
        "retry-after",
        "idempotent-replayed",
        *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
    ]
)
# How long a browser need not ask again. Chromium's limit is two hours; who changes the setting waits for this long.
MAX_AGE_S = 600


def install(app: Flask, setting: str) -> None:
    """Answer pages of these origins: `*`, or several with commas between; none, if there are none.

    Before the hook that looks for a key: a browser asks without one whether it may send it.
    """
    origins = {origin.strip() for origin in setting.split(",")} if setting else set()

    def allowed() -> str | None:
        origin = request.headers.get("Origin")
        if origin is None:
            return None
        return "*" if "*" in origins else origin if origin in origins else None

    def answer_preflight() -> Response | None:
        is_preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not is_preflight or allowed() is None:
            return None
        response = Response(status=204)
        response.headers["Access-Control-Allow-Methods"] = METHODS
        # A `*` would not stand for Authorization.
        asked = request.headers.get("Access-Control-Request-Headers")
        if asked:
            response.headers["Access-Control-Allow-Headers"] = asked
        response.headers["Access-Control-Max-Age"] = str(MAX_AGE_S)
        response.vary.add("Access-Control-Request-Headers")
        return response

    def allow(response: Response) -> Response:
        if "*" not in origins:  # a cache must not give one page the answer for another
            response.vary.add("Origin")
        if (origin := allowed()) is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
        return response

    if origins:
        app.before_request(answer_preflight)
        app.after_request(allow)

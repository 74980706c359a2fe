"""Guards of access: who may ask, whose a job is, how much, from which page, and what is told."""

from tests.mutations.mutation import Mutation, taking_from

keys = taking_from("worker/keys.py", "tests/test_keys.py")
config = taking_from("worker/config.py", "tests/test_keys.py")
limits = taking_from("worker/engine/limits.py", "tests/engine/test_limits.py")
admission = taking_from("worker/engine/admission.py", "tests/web/test_auth.py")
auth = taking_from("worker/web/auth.py", "tests/web/test_auth.py")
app = taking_from("app.py", "tests/web/test_cors.py")
jobs = taking_from("worker/jobs.py", "tests/web/test_auth.py")
cors = taking_from("worker/web/cors.py", "tests/web/test_cors.py")
message = taking_from("worker/message.py", "tests/test_request.py")
log = taking_from("worker/observe/log.py", "tests/observe/test_log.py")
engine = taking_from("worker/engine/engine.py", "tests/engine/test_engine.py")

MUTATIONS: list[Mutation] = [
    keys(
        "a list of keys that came out empty does not open the server",
        "        if not entries:  #",
        "        if False:  #",
        "test_what_is_no_key_is_refused_and_not_repeated",
        "test_a_file_without_keys_stops_the_start",
    ),
    keys(
        "a key that can be guessed is refused",
        "    if not _KEY.fullmatch(key):\n",
        "    if False:\n",
        "test_what_is_no_key_is_refused_and_not_repeated",
    ),
    keys(
        "every key is compared whichever matches",
        "                found = known.name\n",
        "                return known.name\n",
        "test_every_key_is_compared_whichever_matches",
    ),
    config(
        "an error does not repeat a secret",
        "return given.name if is_secret else",
        "return given.name if False else",
        "test_what_is_no_key_is_refused_and_not_repeated",
    ),
    config(
        "an error does not repeat a key that stands among the limits",
        ' or setting.name == "key_limits")',
        ")",
        "test_limits_of_nobody_are_refused",
    ),
    keys(
        "a limit that is none is not repeated",
        'f"entry {number} is not name:concurrency',
        'f"{entry!r} is not name:concurrency',
        "test_limits_of_nobody_are_refused",
    ),
    config(
        "limits of nobody are refused",
        "        if name not in keys.names:\n",
        "        if False:\n",
        "test_limits_of_nobody_are_refused",
    ),
    config(
        "without keys a platform does not open the server",
        'if is_platform and values.get("api_keys") else',
        "if is_platform else",
        "tests/test_settings.py::test_a_platform_reaches_a_server_with_keys_and_nobody_else_need_reach_it",
    ),
    auth(
        "everything but the probes needs a key",
        "        if request.path not in OPEN_PATHS:\n",
        "        if request.endpoint and request.path not in OPEN_PATHS:\n",
        "test_everything_else_needs_one",
    ),
    auth(
        "a key that is not known is refused",
        "    if name is None:\n",
        "    if False:\n",
        "test_a_key_comes_in_either_header",
    ),
    auth(
        "two different API keys are none",
        "    if len(sent) > 1:\n",
        "    if False:\n",
        "test_a_key_comes_in_either_header",
    ),
    jobs(
        "a job of somebody else is not known",
        "        if job is None or job.client != client:\n",
        "        if job is None:\n",
        "test_a_job_of_somebody_else_is_not_known",
    ),
    jobs(
        "an Idempotency-Key belongs to a client",
        "        place = client, key\n",
        '        place = "", key\n',
        "test_an_idempotency_key_belongs_to_a_client",
    ),
    limits(
        "who has too many open is refused",
        "        if (too_many := account.num_open + num_requests - limit) > 0:\n",
        "        if (too_many := 0) > 0:\n",
        "test_as_many_are_open_as_may_be",
    ),
    limits(
        "who has used too many tokens is refused",
        "            if (missing := cost - account.tokens) > 0:\n",
        "            if (missing := 0.0) > 0:\n",
        "test_a_minute_has_so_many_tokens_and_they_come_evenly",
    ),
    limits(
        "a bucket holds no more than a minute has",
        "self.tokens = min(self.limit.tokens_per_minute, self.tokens + tokens)",
        "self.tokens = self.tokens + tokens",
        "test_what_was_not_used_comes_back_and_no_more_than_fits",
    ),
    limits(
        "a clock that goes back gives nothing",
        "        self.filled_at = max(self.filled_at, now)\n",
        "        self.filled_at = now\n",
        "test_a_clock_that_stands_still_or_goes_back_gives_nothing",
    ),
    admission(
        "who leaves is paid back",
        "        self._limits.pay_back(sequence.client, sequence.num_unused, now)\n",
        "",
        "test_one_request_too_many_is_told_when_to_come_back",
    ),
    admission(
        "who has too many open is refused before the work of encoding",
        "            if client is not None:\n",
        "            if False:\n",
        "test_who_has_too_many_open_is_refused_before_the_work_of_encoding",
    ),
    app(
        "a browser may ask without a key",
        """\
    cors.install(app, settings.cors_origins)
    auth.install(app, settings.api_keys)
""",
        """\
    auth.install(app, settings.api_keys)
    cors.install(app, settings.cors_origins)
""",
        "test_a_browser_asks_without_a_key_whether_it_may_send_one",
    ),
    cors(
        "only who asks ahead needs no key",
        "        if not is_preflight or allowed() is None:\n",
        "        if allowed() is None:\n",
        "test_what_is_no_question_of_a_browser_needs_a_key",
    ),
    cors(
        "another page may not",
        "origin if origin in origins else None",
        "origin",
        "test_another_page_may_not",
    ),
    cors(
        "a cache does not give one page the answer for another",
        '            response.vary.add("Origin")\n',
        "            pass\n",
        "test_another_page_may_not",
    ),
    message(
        "a conversation has so many messages",
        "Field(min_length=1, max_length=MAX_MESSAGES)",
        "Field(min_length=1)",
        "test_two_thousand_messages_are_accepted_and_no_more_than_openai_takes",
    ),
    log(
        "what is no request is not repeated in the log",
        "    if mark and not text:\n",
        "    if False:\n",
        "test_what_is_no_request_is_not_repeated",
    ),
    engine(
        "why a model cannot be loaded is told without paths",
        "                admission.reason = without_paths(str(error))\n",
        "                admission.reason = str(error)\n",
        "test_a_load_that_fails_makes_the_engine_dead_with_its_reason",
    ),
]

"""Guards of the web page and of its operations view."""

from tests.mutations.mutation import Mutation, taking_from

page = taking_from("worker/web/page.py", "tests/web/test_page.py")
operations = taking_from("worker/web/operations.py", "tests/web/test_operations.py")
history = taking_from("worker/observe/history.py", "tests/observe/test_history.py")

MUTATIONS: list[Mutation] = [
    page(
        "the page reaches this server and nobody else",
        "connect-src 'self'",
        "connect-src *",
        "test_each_file_says_what_it_is_and_what_it_may_do",
    ),
    page(
        "what is kept of the page is asked for again",
        '    "Cache-Control": "no-cache",\n',
        '    "Cache-Control": "max-age=3600",\n',
        "test_each_file_says_what_it_is_and_what_it_may_do",
    ),
    operations(
        "a job of somebody else is not named",
        "    if sequence.client == client():\n",
        "    if sequence:\n",
        "test_who_runs_and_who_waits_is_shown_and_to_whom_it_is_the_own_job",
    ),
    operations(
        "an engine that does not live is said to be dead",
        '"DEAD" if shared.engine.liveness() else shared.engine.state.value',
        "shared.engine.state.value",
        "test_an_engine_that_does_not_live_is_said_to_be_dead",
    ),
    history(
        "a rate is that of a whole interval",
        "        if elapsed_s < SAMPLE_S:\n",
        "        if elapsed_s <= 0:\n",
        "test_a_sample_says_how_fast_it_was_since_the_one_before",
    ),
    history(
        "the last minutes have a limit",
        "deque(maxlen=MAX_SAMPLES)",
        "deque()",
        "test_no_more_is_remembered_than_there_is_room_for",
    ),
]

"""Guards of the web page, of its operations view, and of what a native stream says for it."""

from tests.mutations.mutation import Mutation, Taking, taking_from

page = taking_from("worker/web/page.py", "tests/web/test_page.py")
operations = taking_from("worker/web/operations.py", "tests/web/test_operations.py")
native = taking_from("worker/web/native.py", "tests/web/test_tools.py")
history = taking_from("worker/observe/history.py", "tests/observe/test_history.py")


PAGE = "tests/web/test_page.py::"
CHAT = PAGE + "TestChat::"
REFUSED = PAGE + "TestRefused::"
LOADING = PAGE + "TestLoading::"
COMING_BACK = PAGE + "TestComingBack::"
NETWORK = PAGE + "TestBadNetwork::"
BROKEN = PAGE + "TestBrokenAnswers::"
LOOKS = PAGE + "TestLooks::"
PARTS = PAGE + "TestParts::"
HOSTILE = PAGE + "TestHostile::"
MARKDOWN = PAGE + "TestMarkdown::"


def script(name: str) -> Taking:
    """Makes the mutations of one of the page's modules."""
    return taking_from(f"worker/web/static/page/{name}.js", "tests/web/test_page.py")


answering, api, chat, conversation = script("answering"), script("api"), script("chat"), script("conversation")
css = taking_from("worker/web/static/page/page.css", "tests/web/test_page.py")
html = taking_from("worker/web/static/page/index.html", "tests/web/test_page.py")
main, markdown, stream, turn = script("main"), script("markdown"), script("stream"), script("turn")

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
    page(
        "the page runs what this server sends and nothing else",
        "script-src 'self'",
        "script-src 'self' 'unsafe-inline'",
        HOSTILE + "test_what_got_in_all_the_same_could_do_nothing",
    ),
    native(
        "who comes back to an answer with reasoning or calls is told of the same ones",
        "        for one in seen:\n",
        "        for one in seen[:0]:\n",
        "test_native_streams_say_what_is_no_text",
    ),
    native(
        "what has become decidable by the end is told",
        'parts, text = self._parser.flush(), ""',
        'parts, text = [], ""',
        "test_native_streams_say_nothing_more_of_text",
    ),
    stream(
        "who comes back says which event was the last",
        'headers: lastId >= 0 ? { "Last-Event-ID": String(lastId) } : {},',
        "headers: {},",
        NETWORK + "test_a_stream_goes_on_where_it_was_cut",
    ),
    stream(
        "an event that comes twice is passed over",
        "        if (id <= lastId) continue;\n",
        "",
        NETWORK + "test_nothing_comes_twice_where_a_header_is_lost",
    ),
    stream(
        "a connection without a sign of life is replaced",
        "timer = setTimeout(() => silence.abort(), SILENCE_MS);",
        "timer = null;",
        NETWORK + "test_a_connection_that_is_silent_is_replaced",
    ),
    stream(
        "a stream that is refused for good is not asked for again",
        " || (error instanceof Refused && !error.isPassing)) throw",
        ") throw",
        NETWORK + "test_an_answer_that_nobody_knows_any_more_is_said_to_be_lost",
    ),
    stream(
        "a stream that is refused for a moment is asked for again",
        "!error.isPassing",
        "error",
        NETWORK + "test_a_server_that_is_busy_for_a_moment_is_asked_again",
    ),
    stream(
        "an event that is no JSON is not asked for again",
        "        yield { id, data };",
        "        JSON.parse(data);\n        yield { id, data };",
        BROKEN + "test_an_event_that_is_no_json_ends_the_answer",
    ),
    answering(
        "an answer that cannot be read is cancelled",
        "if (this.answer.jobId) this.#cancel(); // nobody",
        "{} // nobody",
        BROKEN + "test_an_event_that_is_no_json_ends_the_answer",
    ),
    answering(
        "what has been read is not asked for after a reload",
        "      answer.lastId = id;\n",
        "",
        CHAT + "test_the_conversation_outlives_a_reload_and_not_being_cleared",
    ),
    answering(
        "Stop cancels on the server",
        "    if (this.answer.jobId) this.#cancel();\n  }",
        "  }",
        CHAT + "test_stop_cancels_on_the_server",
    ),
    answering(
        "a Stop that was lost is sent again",
        "else if (this.answer.isStopAsked) this.#cancel(); //",
        "else if (this.answer.isStopAsked) {} //",
        NETWORK + "test_stop_reaches_the_server_once_it_can_be_reached",
        CHAT + "test_stop_before_there_is_a_job_ends_it_when_there_is_one",
    ),
    answering(
        "a Stop that was lost is sent again while the events go on",
        "if (tries === TRIES || (error instanceof Refused && !error.isPassing)) return;",
        "return;",
        NETWORK + "test_a_stop_that_is_lost_on_its_way_is_sent_again",
    ),
    answering(
        "a request without an answer is sent so often and no more",
        "tries === TRIES || this.answer.isStopAsked",
        "this.answer.isStopAsked",
        NETWORK + "test_a_request_that_gets_no_answer_is_sent_four_times",
    ),
    answering(
        "what is asked while the model is loading is sent when it is ready",
        'error.code === "LOADING"',
        'error.code === "NEVER"',
        LOADING + "test_what_is_asked_is_sent_when_it_is_there",
    ),
    answering(
        "Stop ends the waiting for the model",
        "AbortSignal.any([this.#leaving.signal, this.#stopping.signal])",
        "this.#leaving.signal",
        LOADING + "test_stop_ends_the_waiting",
    ),
    answering(
        "what was stopped while the model was loading is not sent",
        "          if (this.answer.isStopAsked) return null;\n",
        "",
        LOADING + "test_stop_ends_the_waiting",
        LOADING + "test_stop_while_it_is_asked_ends_it_too",
    ),
    answering(
        "a request keeps its name over a reload",
        "this.answer.name ??= newName();",
        "this.answer.name = newName();",
        LOADING + "test_after_a_reload_it_waits_on",
    ),
    answering(
        "Stop is not forgotten over a reload",
        "    this.answer.isStopAsked = true;\n",
        '    Object.defineProperty(this.answer, "isStopAsked", { value: true, enumerable: false });\n',
        LOADING + "test_stop_is_not_forgotten_over_a_reload",
    ),
    conversation(
        "what is refused in another tab waits on here",
        "[RUNNING, FAILED].includes",
        "[RUNNING].includes",
        LOADING + "test_what_is_refused_in_another_tab_waits_on_here",
    ),
    conversation(
        "the same question asked again is another one",
        "found.name === name && ",
        "",
        LOADING + "test_who_asks_the_same_again_in_another_tab_gets_another_answer",
    ),
    chat(
        "with settings that nobody takes nothing is sent",
        "last.answer.jobId || areOptionsValid()",
        "true",
        LOADING + "test_with_settings_that_nobody_takes_it_is_not_sent_after_a_reload",
    ),
    answering(
        "with other settings it is another request",
        'error.code === "KEY_REUSED"',
        'error.code === "NEVER"',
        NETWORK + "test_a_page_that_is_reloaded_before_it_has_the_answer_to_the_first_request[others]",
    ),
    answering(
        "an answer that nobody wants any more is cancelled",
        "cancelJob(this.answer.jobId).catch(() => {});\n    this.#leaving",
        "{}\n    this.#leaving",
        CHAT + "test_clearing_ends_the_work",
    ),
    api(
        "a request that is sent again makes no second job",
        'headers: { "Idempotency-Key": name }, ',
        "",
        NETWORK + "test_an_answer_to_the_first_request_that_is_lost_makes_no_second_job",
    ),
    api(
        "the key is kept until the tab is closed",
        "(value ? sessionStorage.setItem(KEY, value)",
        "(value ? (localStorage.setItem(KEY, value), sessionStorage.setItem(KEY, value))",
        REFUSED + "test_a_key_is_asked_for_and_kept_in_the_tab_only",
    ),
    api(
        "a browser that keeps nothing has the key until the page is closed",
        "    try { given ??= sessionStorage.getItem(KEY); } catch { /* forbidden */ }\n",
        "    given ??= sessionStorage.getItem(KEY);\n",
        CHAT + "test_a_browser_that_keeps_nothing_has_a_chat",
    ),
    conversation(
        "calls that are broken are left out",
        " && areNamed(answer.calls ?? [])",
        "",
        CHAT + "test_a_kept_conversation_that_is_broken_is_left_out",
    ),
    main(
        "an address that names no view shows the chat",
        "!Object.hasOwn(TITLES, name)",
        "!(name in TITLES)",
        CHAT + "test_an_address_that_names_no_view_shows_the_chat",
    ),
    html(
        "what can be no key is not taken",
        ' pattern="\\s*[!-~]*\\s*"',
        "",
        PAGE + "TestKey::test_what_can_be_no_key_is_not_taken",
    ),
    chat(
        "one answer runs at a time",
        "if (this.#running || !question",
        "if (!question",
        CHAT + "test_one_answer_runs_at_a_time",
    ),
    chat(
        "a question that is asked in another way ends the answer to the first",
        "    this.#running?.leave();\n    const turns",
        "    const turns",
        CHAT + "test_one_answer_runs_at_a_time",
    ),
    chat(
        "who has scrolled up is left there",
        "if (isForced || this.#isFollowing) log",
        "log",
        CHAT + "test_who_has_scrolled_up_is_left_there",
    ),
    chat(
        "what is no setting is not sent",
        "!question || !areOptionsValid()) return;",
        "!question) return;",
        CHAT + "test_a_bad_setting_is_not_sent",
    ),
    chat(
        "an answer that runs in another tab is read here before another is asked for",
        "if (last?.answer.state === RUNNING) { // in",
        "if (false) { // in",
        CHAT + "test_a_tab_shows_what_another_has_written",
    ),
    chat(
        "an answer that another tab has cleared is cancelled",
        "    this.#running?.leave();\n    this.#running = null;\n    const { turns }",
        "    this.#running = null;\n    const { turns }",
        CHAT + "test_an_answer_that_is_cleared_in_another_tab_ends",
    ),
    chat(
        "a page that comes back shows what is kept now",
        "      if (!persisted) return;\n",
        "      return;\n",
        COMING_BACK + "test_it_shows_what_is_kept_now",
    ),
    chat(
        "a page that comes back reads what runs",
        "      this.#takeOver();\n      this.#resume();\n",
        "      this.#takeOver();\n",
        COMING_BACK + "test_an_answer_that_runs_is_read",
    ),
    conversation(
        "a conversation that is not kept is said not to be",
        "    this.onWritten(this.#isKept);\n",
        "",
        CHAT + "test_a_conversation_that_there_is_no_room_for_is_not_said_to_be_kept",
    ),
    conversation(
        "what could not be kept is not given up for what is",
        "    if (!this.#isKept) return false;\n",
        "",
        COMING_BACK + "test_what_could_not_be_kept_is_not_lost",
    ),
    conversation(
        "an answer that has ended in another tab is taken from there",
        " && [RUNNING, FAILED].includes(found.state);",
        ";",
        CHAT + "test_an_answer_that_has_ended_in_another_tab_is_taken_from_there",
    ),
    conversation(
        "what was given up in another tab is not written over what was asked there instead",
        "place === found.length - 1 && ",
        "",
        LOADING + "test_who_asks_something_else_in_another_tab_is_not_lost",
    ),
    conversation(
        "a page that goes away writes nothing that it has written before",
        "if (this.#timer !== null) this.#write();",
        "this.#write();",
        CHAT + "test_a_tab_that_is_closed_leaves_the_conversation_to_the_other",
    ),
    conversation(
        "a page that goes away writes what it has not written",
        "if (this.#timer !== null) this.#write();",
        "",
        CHAT + "test_what_is_not_kept_yet_is_kept_when_the_page_goes_away",
    ),
    conversation(
        "what another tab writes is taken over",
        "      if (key === NAME || key === null) onElsewhere();",
        "",
        CHAT + "test_a_tab_shows_what_another_has_written",
    ),
    conversation(
        "an answer that grows here is not taken from another tab",
        "if (place >= 0 && place",
        "if (false && place",
        CHAT + "test_an_answer_that_another_tab_has_an_older_part_of_goes_on",
    ),
    conversation(
        "an answer that another tab has cleared does not come back",
        "if (place >= 0 && place === found.length - 1 && isSameAndRuns(found[place], running))",
        "if (place >= 0)",
        CHAT + "test_an_answer_that_is_cleared_in_another_tab_ends",
    ),
    conversation(
        "a question is written at once",
        "this.#write(); // at once",
        "this.save(); // at once",
        CHAT + "test_what_is_not_kept_yet_is_kept_when_the_page_goes_away",
    ),
    conversation(
        "a call without a result is not told to the model",
        "if (isCalling) found",
        "if (answer.calls.length && !isLast) found",
        PARTS + "test_a_call_without_a_result_is_not_told_to_the_model",
    ),
    conversation(
        "a question without an answer is not told to the model",
        "else if (answer.text || isCalling || isLast) found",
        "else found",
        CHAT + "test_a_question_without_an_answer_is_not_told_to_the_model",
    ),
    conversation(
        "a conversation that is broken is left out",
        " && turns.every(isWhole) ? turns",
        " ? turns",
        CHAT + "test_a_kept_conversation_that_is_broken_is_left_out",
    ),
    markdown(
        "a link goes to the web or to a mailbox",
        "  if (!/^(https?:\\/\\/|mailto:)/i.test(address)) return text ? shown : address;\n",
        "",
        HOSTILE + "test_no_text_becomes_anything_but_text",
    ),
    markdown(
        "code is text",
        'make("code", {}, code))',
        'Object.assign(make("code"), { ["inner" + "HTML"]: code }))',
        HOSTILE + "test_no_text_becomes_anything_but_text",
    ),
    markdown(
        "what stands before the last block of a text that grows is left in place",
        "while (same < found.length && ",
        "while (same < 0 && ",
        MARKDOWN + "test_a_text_that_grows_is_shown_as_the_whole_would_be",
    ),
    markdown(
        "the items of a list that grows stay",
        "if (grown?.list && ",
        "if (false && ",
        MARKDOWN + "test_a_list_that_grows_keeps_its_items",
    ),
    markdown(
        "a paragraph is searched once by each rule",
        "if (rule.match !== null && !(rule.match?.index >= end)) {",
        "{",
        MARKDOWN + "test_a_paragraph_is_searched_once",
    ),
    css(
        "a paragraph begins at the side of its language",
        "{ unicode-bidi: plaintext; }",
        "{}",
        LOOKS + "test_what_is_read_from_the_right_stands_there",
    ),
    css(
        "code begins at the left",
        ".code { direction: ltr; }\n",
        "",
        LOOKS + "test_what_is_read_from_the_right_stands_there",
    ),
    markdown(
        "quotes stand in each other to a limit",
        "if (canNest && QUOTE",
        "if (QUOTE",
        MARKDOWN + "test_what_is_nested_deeper_than_anybody_reads_is_text",
    ),
    markdown(
        "lists stand in each other to a limit",
        "if (canNest && ITEM",
        "if (ITEM",
        MARKDOWN + "test_what_is_nested_deeper_than_anybody_reads_is_text",
    ),
    markdown(
        "a text that cannot be read as Markdown is shown as it is",
        "      } catch { //",
        "      } catch (error) {\n        throw error; //",
        BROKEN + "test_a_text_that_cannot_be_read_as_markdown_is_shown_as_it_is",
    ),
    css(
        "the tiles of operations fill their rows",
        ".tiles { grid-template-columns: repeat(3,",
        ".tiles { grid-template-columns: repeat(5,",
        LOOKS + "test_the_tiles_of_operations_fill_their_rows",
    ),
    turn(
        "an answer without a word is said to be empty",
        "!hasBegun(answer)) parts",
        "false) parts",
        PARTS + "test_an_answer_without_a_word_is_said_to_be_empty",
    ),
    turn(
        "a measure that is no number is left out",
        "Number.isFinite(value) && value > 0",
        "value",
        BROKEN + "test_a_measure_that_is_no_number_is_left_out",
    ),
    turn(
        "a screen reader reads an answer when it is whole",
        '    this.answer.setAttribute("aria-busy", isRunning);\n',
        "",
        CHAT + "test_an_answer_streams",
    ),
    turn(
        "a call that was cut is said to be",
        'call.isWhole || isRunning ? "" : " (not complete)"',
        '""',
        PARTS + "test_a_call_that_was_cut_is_said_to_be",
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

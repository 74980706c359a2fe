"""Guards of what an operator sees: numbers that add up, names of requests, heartbeats that disturb nobody."""

from tests.mutations.mutation import Mutation, taking_from

engine = taking_from("worker/engine/engine.py", "tests/observe/test_metrics.py")
tallies = taking_from("worker/observe/tallies.py", "tests/observe/test_tallies.py")
settings = taking_from("worker/settings.py", "tests/test_settings.py")
heartbeat = taking_from("worker/observe/heartbeat.py", "tests/observe/test_heartbeat.py")
request_id = taking_from("worker/web/request_id.py", "tests/web/test_request_id.py")
log = taking_from("worker/observe/log.py", "tests/observe/test_log.py")
telemetry = taking_from("worker/observe/telemetry.py", "tests/observe/test_otlp.py")
otlp = taking_from("worker/observe/otlp.py", "tests/observe/test_otlp.py")
endings = taking_from("worker/engine/endings.py", "tests/web/test_request_id.py")
process = taking_from("worker/process.py", "tests/web/test_telemetry.py")
openapi = taking_from("worker/web/openapi.py", "tests/web/test_openapi.py")

MUTATIONS: list[Mutation] = [
    engine(
        "a first token is not counted as one behind another",
        "            self.tallies.first_token(len(sequence.prompt_ids), now - sequence.submitted_at)\n",
        "            self.tallies.next_token(now - sequence.submitted_at)\n",
        "test_an_engine_counts_what_it_does",
    ),
    tallies(
        "a bound belongs to its bucket",
        "bisect_left(self.bounds, value)",
        "bisect_left(self.bounds, value + 1e-9)",
        "test_a_bound_belongs_to_its_bucket",
    ),
    heartbeat(
        "a heartbeat is not sent elsewhere",
        "build_opener(_NoRedirects())",
        "build_opener()",
        "test_a_redirect_is_not_followed",
    ),
    heartbeat(
        "trouble with heartbeats is told once",
        "        if trouble and trouble != self._trouble:\n",
        "        if trouble:\n",
        "test_trouble_is_told_once_until_it_changes",
    ),
    heartbeat(
        "a bug in a heartbeat does not end them",
        "            except Exception:  # a bug of ours",
        "            except OSError:  # a bug of ours",
        "test_a_bug_in_the_status_does_not_end_the_beats",
    ),
    heartbeat(
        "a heartbeat has a time limit",
        "timeout=min(POST_LIMIT_S, self._interval_s)",
        "timeout=self._interval_s",
        "test_a_post_has_a_time_limit",
    ),
    request_id(
        "the name of a request can break no log",
        "    if sent is not None and g.request_id != sent:\n",
        "    if False:\n",
        "test_what_is_no_name_is_refused_by_name",
    ),
    request_id(
        "what is no traceparent is none",
        'if found is None or (found[1] == "00" and found[5]):',
        "if found is None:",
        "test_what_names_no_span_is_let_through_without",
    ),
    openapi(
        "the API's description has the name of a request",
        "[*description.parameters, request_id.PARAMETER]",
        "[*description.parameters]",
        "test_every_request_may_have_a_name_and_every_answer_has_one",
    ),
    log(
        "what others print is a line of JSON",
        '            self.raw.write(json_line(time.time(), "warning", "stderr", whole) + "\\n")\n',
        '            self.raw.write(whole + "\\n")\n',
        "test_what_others_print_becomes_lines",
    ),
    log(
        "the log's own lines are not made JSON twice",
        "return out.raw if isinstance(out, JsonStderr) else out",
        "return out",
        "test_lines_of_the_log_are_not_wrapped_again",
    ),
    log(
        "a bar that never ends its line is not kept for ever",
        "if len(self._begun) > self.max_begun:",
        "if False:",
        "test_a_line_that_never_ends_is_not_kept_for_ever",
    ),
    telemetry(
        "a server that cannot tell a collector does not start",
        "    check_telemetry(settings, environ)\n    if",
        "    if",
        "test_what_is_not_there_is_refused_by_name",
    ),
    telemetry(
        "a header that would stand in the log is refused",
        "if not _HEADER.fullmatch(entry) or",
        "if",
        "test_headers_that_would_stand_in_the_log_are_refused_and_not_repeated",
    ),
    telemetry(
        "a header that would break its line is refused",
        " or _CONTROL.search(unquote(entry))",
        "",
        "test_headers_that_would_stand_in_the_log_are_refused_and_not_repeated",
    ),
    telemetry(
        "a collector's address is one",
        "if environ.get(name) and not is_web_address(environ[name])",
        "if False",
        "test_what_is_not_there_is_refused_by_name",
    ),
    telemetry(
        "a number that the SDK does not take is refused",
        "    problems += _wrong_numbers(environ)\n",
        "",
        "test_what_is_not_there_is_refused_by_name",
    ),
    settings(
        "a heartbeat has somewhere to go",
        '    if metadata["is_url"] and value and not is_web_address(value):\n',
        "    if False:\n",
        "test_a_url_that_cannot_be_asked_is_refused_and_not_repeated",
    ),
    settings(
        "a heartbeat's URL has nothing that an error repeats",
        "([/?][!-~]*)?)?",
        "([/?]\\S*)?)?",
        "test_a_url_that_cannot_be_asked_is_refused_and_not_repeated",
    ),
    telemetry(
        "what is off is not imported",
        '    if settings.opentelemetry == "off":\n        return NoTelemetry()\n',
        "",
        "test_off_is_off",
        "tests/web/test_telemetry.py::test_nothing_of_it_is_imported_unless_it_is_on",
    ),
    otlp(
        "a span is a part of what its client says",
        "            _context_of(outcome.origin.parent),\n",
        "            Context(),\n",
        "test_it_is_a_part_of_what_its_client_says",
    ),
    otlp(
        "what its client does not record is not sent",
        "TraceFlags.SAMPLED if parent.is_sampled else TraceFlags.DEFAULT",
        "TraceFlags.SAMPLED",
        "test_of_what_its_client_does_not_record_nothing_is_sent_but_numbers",
    ),
    otlp(
        "a seed that is too large is no error in the log",
        " and params.seed <= MAX_INT:",
        ":",
        "test_a_seed_that_is_too_large_is_left_out",
    ),
    otlp(
        "the end of the process waits for no collector",
        "thread.join(max(0.0, deadline - time.monotonic()))",
        "thread.join()",
        "test_the_end_waits_for_no_collector",
    ),
    otlp(
        "trouble with a collector is told once",
        "        if trouble and trouble != self._trouble:\n",
        "        if trouble:\n",
        "test_trouble_is_told_once_until_it_changes",
    ),
    otlp(
        "the exporters do not tell it too",
        ".addFilter(_is_not_told_already)",
        ".addFilter(lambda record: True)",
        "test_the_exporters_say_nothing_of_it_themselves",
    ),
    otlp(
        "a collector is spoken to over TLS under gevent",
        '        self.mount("https://", _TlsAdapter())\n',
        "",
        "tests/web/test_telemetry.py::test_it_goes_over_tls",
    ),
    otlp(
        "the last spans leave before a process that dies",
        'None if environ.get("OTEL_BSP_SCHEDULE_DELAY") else SPAN_DELAY_MS',
        "None",
        "tests/web/test_telemetry.py::test_a_process_that_dies_says_who_died_with_it",
    ),
    endings(
        "an outcome knows the request that made it",
        "        origin=sequence.origin,\n",
        "",
        "test_each_job_of_a_request_has_it",
    ),
    process(
        "what was said last is sent before the end",
        "    shared.telemetry.close(min(FLUSH_S, deadline - time.monotonic()))\n",
        "",
        "test_what_was_said_last_arrives_before_the_end",
    ),
]

"""Guards of the command line: where settings stand, how a model comes, what is measured."""

from tests.mutations.mutation import Mutation, taking_from

config = taking_from("worker/config.py", "tests/test_config.py")
settings = taking_from("worker/settings.py", "tests/test_settings.py")
serve = taking_from("worker/serve.py", "tests/test_serve.py")
download = taking_from("worker/engine/download.py", "tests/test_models.py")
models = taking_from("worker/models.py", "tests/test_models.py")
bench = taking_from("worker/bench.py", "tests/test_bench_command.py")
load = taking_from("worker/load.py", "tests/test_bench_command.py")
check = taking_from("worker/check.py", "tests/test_check.py")
chat = taking_from("worker/chat.py", "tests/test_chat.py")

MUTATIONS: list[Mutation] = [
    config(
        "a file comes behind what was set elsewhere",
        'given = _of_file(given["config"], problems) | given',
        'given = given | _of_file(given["config"], problems)',
        "test_an_option_wins_over_a_variable_and_that_over_a_file",
    ),
    config(
        "a line that is no setting is refused",
        'problems.append(f"{place} is not a setting{did_you_mean(name.lower(), _FIELDS)}")',
        "pass",
        "test_what_a_file_may_not_say_is_named_with_its_place",
    ),
    config(
        "a table of settings is refused",
        "        if isinstance(value, dict):\n            problems.append(",
        "        if isinstance(value, dict):\n            str(",
        "test_what_a_file_may_not_say_is_named_with_its_place",
    ),
    config(
        "a number is no text and a text no number",
        "if isinstance(value, bool) or not isinstance(value, kinds):",
        "if isinstance(value, bool):",
        "test_what_a_file_may_not_say_is_named_with_its_place",
    ),
    config(
        "only the variable of a platform opens the server",
        'given["port"].origin == variable_name(_FIELDS["port"])',
        "True",
        "test_only_a_platforms_port_opens_a_server_with_keys",
    ),
    config(
        "a file may begin with a byte order mark",
        'tomllib.loads(path.read_text("utf-8-sig"))',
        'tomllib.loads(path.read_text("utf-8"))',
        "test_a_file_may_begin_with_a_byte_order_mark",
    ),
    config(
        "brackets in a file end nothing",
        "    except RecursionError:\n",
        "    except ZeroDivisionError:\n",
        "test_what_a_file_may_not_say_is_named_with_its_place",
    ),
    settings(
        "a model has a name",
        "    if kind is str and setting.default and not value.strip():\n",
        "    if False:\n",
        "test_what_is_refused_names_variable_value_and_limit",
    ),
    serve(
        "the configuration that is printed is TOML whatever it holds",
        """re.sub("[\\x7f-\\x9f]", """,
        """re.sub("[\\x80-\\x9f]", """,
        "test_print_config_is_a_file_that_has_the_same_effect",
    ),
    serve(
        "a name in a comment ends no line",
        "# {_toml(origin)[1:-1] or 'default'}",
        "# {origin or 'default'}",
        "test_print_config_is_a_file_that_has_the_same_effect",
    ),
    serve(
        "an option for the port does not open the server",
        '        environ["ENDSTOP_HOST"] = configuration.settings.host',
        "        _ = configuration.settings.host",
        "test_an_option_for_the_port_does_not_open_the_server",
    ),
    serve(
        "nor do keys that the file has later",
        ' or ("port" in options and not is_of_file)',
        "",
        "test_keys_that_come_with_a_reload_do_not_open_the_server",
    ),
    serve(
        "the configuration that is printed has no secret",
        '        if setting.metadata["is_secret"]:\n',
        "        if False:\n",
        "test_print_config_shows_no_secret",
    ),
    download(
        "a model that is there is served when the hub is away",
        "    if cached:\n        return Found(cached, reason)\n",
        "",
        "test_what_is_there_is_served_without_the_hub",
    ),
    download(
        "weights in formats that are never brought do not make a model incomplete",
        "for unwanted in (None, _OTHER_WEIGHTS):",
        "for unwanted in (None,):",
        "test_what_is_there_is_served_without_the_hub",
    ),
    download(
        "what broken-off downloads have left is removed",
        "                leftover.unlink()\n",
        "                pass\n",
        "test_leftovers_of_broken_off_downloads_do_not_pile_up",
    ),
    download(
        "a file that somebody writes is left alone",
        "if time.time() - leftover.stat().st_mtime > LEFTOVER_S:",
        "if True:",
        "test_leftovers_of_broken_off_downloads_do_not_pile_up",
    ),
    download(
        "a model that the disk has no room for is not begun",
        "    if num_bytes > free:\n",
        "    if False:\n",
        "test_a_model_that_the_disk_has_no_room_for",
    ),
    download(
        "a download ends with whoever began it",
        "    os._exit(1)  # sys.exit",
        "    pass  # sys.exit",
        "test_a_download_does_not_outlive_who_began_it",
    ),
    download(
        "Ctrl-C ends a download",
        "            os.kill(child, signal.SIGKILL)\n            native_waitpid(child, 0)\n",
        "            native_waitpid(child, 0)\n",
        "test_ctrl_c_ends_a_download",
    ),
    download(
        "a folder by a name that the hub cannot have breaks no list",
        "except (LocalEntryNotFoundError, HFValidationError):",
        "except LocalEntryNotFoundError:",
        "test_folders_of_other_names_are_listed_and_can_be_removed",
    ),
    models(
        "a link in the cache is not removed",
        "    if folder.is_symlink():\n",
        "    if False:\n",
        "test_a_link_is_not_removed",
    ),
    models(
        "a name that is a path removes nothing",
        '    if not HUB_ID.fullmatch(name):\n        raise CannotDo(f"{name!r} is no name',
        '    if False:\n        raise CannotDo(f"{name!r} is no name',
        "test_what_cannot_be_removed_is_named_with_the_nearest_and_nothing_goes",
    ),
    bench(
        "what failed is not measured",
        "whole = [stream for stream in streams if not stream.failure and stream.text_at]",
        "whole = streams",
        "test_what_failed_is_counted_by_its_reason_and_not_measured",
        "test_what_does_not_end_in_time_has_failed",
    ),
    bench(
        "a model's name cannot command the terminal",
        'title = printable(f"{result.model} at {result.url}: {result.streams} streams at a time")',
        'title = f"{result.model} at {result.url}: {result.streams} streams at a time"',
        "test_a_models_name_cannot_command_the_terminal",
    ),
    load(
        "a chunk may end within a line",
        "        if not self.is_chunked:\n",
        "        if True:\n",
        "test_a_stream_is_the_same_however_it_is_cut",
    ),
    load(
        "a chunk's size is a number",
        '                if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", size):\n',
        "                if False:\n",
        "test_what_is_no_chunk_has_failed",
    ),
    load(
        "the last chunk is the end",
        "is_over = not data or stream.is_over",
        "is_over = not data",
        "test_the_last_chunk_is_the_end_though_the_connection_stays",
    ),
    load(
        "an event of another form is a failure",
        "except (ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:",
        "except AssertionError as error:",
        "test_an_event_of_another_form_has_failed",
    ),
    check(
        "half a surrogate pair ends no command",
        ", *range(0xD800, 0xE000))",
        ")",
        "test_half_a_surrogate_pair_is_shown",
    ),
    chat(
        "a script learns that an answer failed",
        "return is_terminal() or not session.has_failed",
        "return True",
        "test_a_script_learns_that_an_answer_failed",
    ),
    load(
        "a stream that goes on and on is late too",
        "if left_s <= 0 or not ready:",
        "if not ready:",
        "test_a_stream_that_never_ends_has_failed_in_time",
    ),
    load(
        "no more are open than were asked for",
        "for _ in range(concurrency):",
        "for _ in bodies:",
        "test_it_keeps_so_many_open_and_counts_what_came",
    ),
]

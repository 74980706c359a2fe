"""Guards of the process: how it starts, drains and leaves, and gunicorn's threaded worker."""

from tests.mutations.mutation import Mutation, taking_from

process = taking_from("worker/process.py", "tests/test_process.py")
draining = taking_from("worker/web/draining.py", "tests/test_process.py")
gthread = taking_from("worker/web/gthread_worker.py", "tests/web/test_patience.py")
patience = taking_from("worker/web/patience.py", "tests/web/test_patience.py")
gevent = taking_from("worker/web/gevent_worker.py", "tests/web/test_patience.py")
ops = taking_from("worker/web/ops.py", "tests/test_process.py")
config = taking_from("gunicorn.conf.py", "tests/test_process.py")

_SIGNALS = [
    gthread(
        "a SIGQUIT does not wait for the thread that it interrupts",
        "        Worker.handle_quit(self, sig, frame)\n",
        "        super().handle_quit(sig, frame)\n",
        "tests/web/test_gthread_worker.py::test_a_sigquit_that_interrupts_a_submit_does_not_wait_for_it",
    ),
    process(
        "a worker that another one follows is told so",
        "            kill_worker(pid, signal.SIGUSR2)  # see worker.web.draining\n",
        "            pass\n",
        "test_a_worker_that_another_one_follows_closes_its_door",
    ),
    process(
        "the door stays open while the server drains",
        "        if number == signal.SIGTERM and not is_stopping:\n",
        "        if number == signal.SIGTERM:\n",
        "test_a_worker_that_nobody_follows_is_not_told_of_one",
    ),
    draining(
        "a worker that is told to stop before the arbiter keeps its door open",
        "        if self.is_handing_over or self.wsgi is None:\n",
        "        if True:\n",
        "test_a_worker_that_is_told_alone_says_so[gthread]",
        "test_every_process_is_told_to_stop_at_once[gthread]",
    ),
    draining(
        "signals are held while handlers are being set",
        "signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [])",
        "test_no_signal_comes_while_handlers_are_being_set",
    ),
    draining(
        "a worker that another one follows closes its door",
        "        if self.is_handing_over or self.wsgi is None:\n",
        "        if self.wsgi is None:\n",
        "test_a_worker_that_another_one_follows_closes_its_door",
    ),
    draining(
        "a hangup is the arbiter's to decide",
        "        for number in (signal.SIGINT, signal.SIGHUP):\n",
        "        for number in (signal.SIGINT,):\n",
        "test_a_hangup_of_every_process_cuts_no_stream[gthread]",
    ),
    process(
        "the end of the terminal is no wish to reload",
        "        if not has_terminal or _has_terminal():\n",
        "        if True:\n",
        "test_a_terminal_that_closes[False-gthread]",
    ),
    process(
        "nohup's server outlives its terminal",
        "        elif not (is_told_to_stop or is_immune_to_hangup):\n",
        "        elif not is_told_to_stop:\n",
        "test_a_terminal_that_closes[True-gthread]",
    ),
    process(
        "a second hangup does not end the drain",
        "        elif not (is_told_to_stop or is_immune_to_hangup):\n",
        "        elif not is_immune_to_hangup:\n",
        "test_a_hangup_is_no_second_signal_to_stop",
    ),
    process(
        "a worker whose terminal is gone leaves all the same",
        "        with suppress(OSError):  # a terminal or a pipe that is gone\n",
        "        with suppress():\n",
        "test_a_worker_whose_terminal_is_gone_leaves_all_the_same",
    ),
    draining(
        "a drain ends when nothing is left",
        "        if self.drained_at is None:\n",
        "        if False:\n",
        "test_a_draining_worker_leaves_when_nothing_is_left",
    ),
    process(
        "a second signal ends the drain",
        "signal.SIGQUIT if is_told_to_stop else number",
        "number",
        "test_a_second_signal_ends_the_drain[numbers0-gthread]",
    ),
    process(
        "SIGINT drains too",
        "    arbiter.handle_int = arbiter.handle_term\n",
        "",
        "test_while_the_server_drains_a_new_client_is_told_so[2-gthread]",
    ),
    draining(
        "Ctrl-C is the arbiter's to decide",
        "        for number in (signal.SIGINT, signal.SIGHUP):\n",
        "        for number in (signal.SIGHUP,):\n",
        "test_ctrl_c_reaches_every_process_and_the_arbiter_decides[gthread]",
    ),
    process(
        "a signal while the worker imports ends it",
        """\
    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, lambda *_: os._exit(0))  # nothing is served yet
""",
        "",
        "test_a_signal_while_it_starts_ends_it_at_once[importing-15-gthread]",
    ),
    process(
        "a signal for the arbiter is not the new worker's",
        """\
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
""",
        "",
        "test_signals_before_the_worker_has_handlers_of_its_own",
    ),
    config(
        "a graceful_timeout that would cut streams is refused",
        "if cfg.graceful_timeout < least_s:\n",
        "if False:\n",
        "test_a_graceful_timeout_that_would_cut_streams_is_refused",
    ),
    config(
        "a second worker is refused",
        "if number != NUM_WORKERS:\n",
        "if False:\n",
        "test_an_option_that_breaks_the_promise_is_refused",
    ),
    config(
        "a preload is refused",
        "if cfg.preload_app:\n",
        "if False:\n",
        "test_an_option_that_breaks_the_promise_is_refused",
    ),
    config(
        "another worker class is refused",
        "if cfg.worker_class_str != our_worker_class:\n",
        "if False:\n",
        "test_an_option_that_breaks_the_promise_is_refused",
    ),
    config(
        "too few threads are refused",
        "if cfg.threads < num_threads:\n",
        "if False:\n",
        "test_an_option_that_breaks_the_promise_is_refused",
    ),
    config(
        "too few files are refused",
        "if worker_connections < 1:\n",
        "if False:\n",
        "test_too_few_files_are_no_reason_to_die_later",
    ),
    config(
        "an IPv6 address is bound in brackets",
        'f"[{settings.host}]" if ":" in settings.host else settings.host',
        "settings.host",
        "test_an_address_is_bound_as_it_is_written",
    ),
    process(
        "no signal makes a second worker",
        "    arbiter.handle_ttin = arbiter.handle_ttou = ignore\n",
        "    arbiter.handle_ttin = arbiter.handle_ttou = lambda: None\n",
        "test_a_second_worker_is_not_made_by_a_signal",
    ),
    process(
        "as many files may be open as the system allows",
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))\n",
        "",
        "test_as_many_files_may_be_open_as_the_system_allows",
    ),
    process(
        "no more connections than files",
        "min(wanted, soft - NUM_OTHER_FILES)",
        "wanted",
        "test_as_many_files_may_be_open_as_the_system_allows",
    ),
    ops(
        "who watches a load is told that the server stops",
        "not (engine.liveness() or engine.should_drain())",
        "not engine.liveness()",
        "tests/web/test_ops.py::test_the_progress_of_a_load_ends_when_the_server_stops",
    ),
    draining(
        "a drained worker does not wait for half a body",
        "        if is_idle or self.is_out_of_time(elapsed_s):\n",
        "        if self.is_out_of_time(elapsed_s):\n",
        "test_a_draining_worker_does_not_wait_for_connections_without_a_stream",
    ),
    draining(
        "a worker does not leave in the middle of an answer",
        " and now - self.given_at > LINGER_S\n",
        "\n",
        "test_a_draining_worker_does_not_leave_in_the_middle_of_an_answer",
    ),
    draining(
        "a worker that is out of time leaves at once",
        "        if is_idle or self.is_out_of_time(elapsed_s):\n",
        "        if is_idle:\n",
        "test_a_worker_that_is_out_of_time_leaves_at_once",
    ),
    draining(
        "what gunicorn refuses is answered as everything else is",
        "        util.write_error = write_error  # what",
        "        pass  # what",
        "tests/web/test_early_answers.py::test_what_is_no_request_is_told_why",
    ),
]

_LEAVING = [
    process(
        "a search for garbage does not stop the process",
        "        gc.freeze()\n",
        "",
        "test_what_is_imported_for_good_is_not_searched_for_garbage",
    ),
    process(
        "a drain does not wait for a long step",
        "        shared.engine.end_now()  # nothing,",
        "        pass  # nothing,",
        "test_a_drain_is_over_when_the_last_stream_is",
        "tests/test_every_stream_ends.py::test_every_stream_ends_with_its_process[SIGTERM in a long step-gthread]",
    ),
    process(
        "who leaves at once does not wait for a long step",
        "    shared.engine.end_now()  # those",
        "    pass  # those",
        "tests/test_every_stream_ends.py::test_every_stream_ends_with_its_process[SIGQUIT in a long step-gthread]",
    ),
    process(
        "SIGQUIT ends the streams first",
        'so the streams are ended now."""\n    _end_streams(app, STREAM_END_S)\n',
        'so the streams are ended now."""\n',
        "test_sigquit_ends_the_streams_before_gunicorn_exits",
    ),
    process(
        "a worker that leaves ends its streams",
        "    _end_streams(app, STREAM_END_S)\n    shared = app",
        "    shared = app",
        "test_a_worker_that_leaves_ends_its_streams_then_its_engine_then_itself",
    ),
    process(
        "a worker that leaves waits until the endings are written",
        "    while shared.streams.num_open and time.monotonic() < deadline:\n",
        "    while False:\n",
        "test_a_worker_that_leaves_ends_its_streams_then_its_engine_then_itself",
    ),
    process(
        "a worker that leaves does not wait for a client that never reads",
        "    while shared.streams.num_open and time.monotonic() < deadline:\n",
        "    while shared.streams.num_open:\n",
        "test_a_worker_that_leaves_does_not_wait_for_a_client_that_never_reads",
    ),
    process(
        "a worker that leaves lets the last outcomes be written",
        "    shared.housekeeper.join(LAST_WORDS_S)",
        "    pass",
        "test_a_worker_that_leaves_ends_its_streams_then_its_engine_then_itself",
    ),
    process(
        "a worker that leaves ends its engine",
        "    shared.engine.stop(JOIN_S)\n",
        "",
        "test_a_worker_that_leaves_ends_its_streams_then_its_engine_then_itself",
    ),
    process(
        "a worker that leaves is not torn down",
        "            stream.flush()\n    os._exit(0)\n",
        "            stream.flush()\n",
        "test_a_worker_that_leaves_ends_its_streams_then_its_engine_then_itself",
    ),
    process(
        "a drain does not wait for a client that never reads",
        "        return True  # and what is open still has a client that does not read\n",
        "        pass\n",
        "test_a_drain_is_over_when_the_last_stream_is",
    ),
    process(
        "a drain waits until the endings are written",
        "shared.engine.num_open == 0 and shared.streams.num_open == 0",
        "shared.engine.num_open == 0",
        "test_a_drain_is_over_when_the_last_stream_is",
    ),
    process(
        "a drain waits for requests that have no reader",
        "shared.engine.num_open == 0 and shared.streams.num_open == 0",
        "shared.streams.num_open == 0",
        "test_a_drain_is_over_when_the_last_stream_is",
    ),
    process(
        "a dead engine ends its process",
        "    engine.on_dead = exit_when_dead\n",
        "",
        "tests/test_every_stream_ends.py::test_every_stream_ends_with_its_process[the loop is killed-gthread]",
    ),
    process(
        "an engine that died before it could be told ends its process",
        """\
    if engine.state == "DEAD":  # it died before it could be told what to do then
        threading.Thread(target=exit_when_dead, daemon=True).start()
""",
        "",
        "test_an_engine_that_was_dead_before_the_process_knew_it_ends_it",
    ),
    process(
        "a model that cannot be loaded is not loaded again and again",
        "EXIT_DIED if has_loaded else EXIT_CANNOT_LOAD",
        "EXIT_DIED",
        "test_a_model_that_is_not_there[gthread]",
    ),
    process(
        "the engine is told that its worker leaves",
        "    engine.should_drain = lambda: worker.is_leaving\n",
        "",
        "test_a_drain_lets_streams_finish_and_accepts_no_other[gthread]",
    ),
    process(
        "a peer that acknowledges nothing is gone",
        "        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)\n",
        "",
        "test_accepted_sockets_inherit_limits",
    ),
    process(
        "an idle peer is asked whether it is there",
        "        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)\n",
        "",
        "test_accepted_sockets_inherit_limits",
    ),
    process(
        "a client that does not read is noticed soon",
        "        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)\n",
        "",
        "test_accepted_sockets_inherit_limits",
    ),
]

_THREADS = [
    gthread(
        "a head has a deadline",
        "        for conn in [conn for conn in self.arriving if conn.timeout <= now]:\n",
        "        for conn in ():\n",
        "test_a_head_that_does_not_come_is_given_up[gthread-short]",
    ),
    gthread(
        "a head has a deadline where a thread reads it",
        "            limit_reads(self.parser.unreader, self.sock, HEAD_S)\n",
        "            pass\n",
        "test_a_head_that_does_not_come_is_given_up[gthread-long]",
    ),
    gthread(
        "a body has a deadline on the loop",
        "                self._refuse(conn, BodyTimeout(message))\n",
        "                pass\n",
        "test_a_body_that_trickles_is_given_up",
    ),
    gthread(
        "probes have threads of their own",
        "            self._give_thread(conn, self.probe_pool)\n",
        "            self._give_thread(conn, self.tpool)\n",
        "tests/web/test_gthread_worker.py::test_what_is_short_and_must_not_wait_has_threads_of_its_own",
    ),
    gthread(
        "DELETE and HEAD have threads of their own",
        'head.method in (b"DELETE", b"HEAD") or ',
        "",
        "tests/web/test_gthread_worker.py::test_what_is_short_and_must_not_wait_has_threads_of_its_own",
    ),
    gthread(
        "a head is waited for on the loop",
        "                if len(conn.received) > MAX_HEAD_BYTES:\n",
        "                if True:\n",
        "test_a_crowd_in_the_middle_of_a_request_holds_up_nobody[gthread-probe]",
        "test_a_crowd_that_says_nothing_takes_no_thread[gthread]",
    ),
    gthread(
        "a body is waited for on the loop",
        "head.body_bytes > min(MAX_LOOP_BODY_BYTES, self.max_body_bytes)",
        "head.body_bytes > 0",
        "test_bodies_that_come_all_at_once_are_none_too_many[gthread]",
    ),
    gthread(
        "bodies do not take every connection",
        "        self.bodies = Places(self.worker_connections // 2)\n",
        "        self.bodies = Places(self.worker_connections * 2)\n",
        "test_more_half_sent_bodies_than_connections[gthread]",
    ),
    gevent(
        "bodies do not take every connection of greenlets",
        "        self.uploads = Places(self.worker_connections // 2)\n",
        "        self.uploads = Places(self.worker_connections * 2)\n",
        "test_more_half_sent_bodies_than_connections[gevent]",
    ),
    gevent(
        "what gunicorn refuses is read before the connection is reset",
        "        util.close_graceful(client, timeout=LINGER_S)\n",
        "",
        "tests/web/test_early_answers.py::test_what_is_no_request_is_told_why",
    ),
    patience(
        "a few threads read bodies",
        "            if self._num_taken >= self.limit:\n",
        "            if False:\n",
        "test_bodies_that_only_a_thread_can_read_are_limited",
    ),
    patience(
        "who has sent its body is no upload any more",
        '        vars(unreader).pop("leave", lambda: None)()\n',
        "",
        "test_a_stream_is_no_upload_any_more",
    ),
    gthread(
        "a place is left when the request is over",
        "        finally:\n            conn.leave()\n",
        "        finally:\n            pass\n",
        "tests/test_process.py::test_watching_the_model_load_keeps_nobody_out",
    ),
    gthread(
        "a process without a free descriptor goes on",
        "            if error.errno in SHORTAGES:\n",
        "            if False:\n",
        "test_a_process_without_a_free_descriptor_keeps_its_streams[gthread]",
    ),
    gthread(
        "a process without a free descriptor is not busy with it",
        "        self.accept_at = now + PAUSE_S\n",
        "",
        "test_a_process_without_a_free_descriptor_keeps_its_streams[gthread]",
    ),
    gthread(
        "a lack of descriptors does not fill the log",
        "        if now >= self.log_shortage_at:\n",
        "        if True:\n",
        "test_a_process_without_a_free_descriptor_keeps_its_streams[gthread]",
    ),
    gthread(
        "a connection that is closed lingers in the pool",
        """\
                util.close_graceful(conn.sock, timeout=LINGER_S)
                conn.close = lambda graceful=False: util.close(conn.sock)
""",
        "                pass\n",
        "tests/test_process.py::test_clients_that_keep_their_sockets_do_not_hold_up_the_threaded_worker",
    ),
    gthread(
        "a worker that leaves refuses at once",
        """\
            for listener in self.sockets:
                listener.close()
""",
        "            pass\n",
        "tests/test_process.py::test_a_worker_that_another_one_follows_closes_its_door",
    ),
    gthread(
        "a worker that leaves does not wait for a first byte",
        """\
        for conn in self.arriving:
            conn.timeout = min(conn.timeout, deadline)
""",
        "",
        "test_a_worker_that_leaves_does_not_wait_for_a_first_byte",
    ),
]

reload = taking_from("worker/process.py", "tests/test_reload.py")
wsgi = taking_from("wsgi.py", "tests/test_reload.py")
boot = taking_from("worker/web/draining.py", "tests/test_reload.py")
elsewhere = taking_from("gunicorn.conf.py", "tests/test_serve.py")

_RELOADS = [
    reload(
        "a reload with bad settings is refused",
        "            if _can_reload():\n",
        "            if _can_reload() or True:\n",
        "test_a_reload_with_bad_settings_is_refused_and_nobody_notices",
    ),
    wsgi(
        "a worker that replaces another has its settings",
        "create_app(process.settings)",
        "create_app()",
        "test_a_worker_that_replaces_one_that_died_has_the_same_settings",
    ),
    boot(
        "a signal to leave is obeyed before there is an app",
        "    wsgi: Any = None  # until",
        "    # until",
        "test_a_signal_while_the_app_is_imported_is_obeyed",
    ),
    elsewhere(
        "an app.py where the server is started is not taken for ours",
        "sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))\n",
        "",
        "test_the_server_has_what_options_variables_and_the_file_say",
    ),
]

MUTATIONS: list[Mutation] = [*_SIGNALS, *_LEAVING, *_THREADS, *_RELOADS]

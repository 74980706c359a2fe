"""Guards of the process: how it starts, drains and leaves, and gunicorn's threaded worker."""

from tests.mutations.mutation import Mutation, taking_from

process = taking_from("worker/process.py", "tests/test_process.py")
draining = taking_from("worker/web/draining.py", "tests/test_process.py")
gthread = taking_from("worker/web/gthread_worker.py", "tests/web/test_patience.py")
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
        "test_while_the_server_drains_a_new_client_is_told_so[15-gthread]",
    ),
    draining(
        "a worker that is told to stop before the arbiter keeps its door open",
        "        if self.is_handing_over or self.wsgi is None:\n",
        "        if True:\n",
        "test_a_worker_that_is_told_alone_says_so[gthread]",
        "test_every_process_is_told_to_stop_at_once[gthread]",
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
        "        if self.has_drained(now - self.leaving_since) and self.alive:\n",
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
        "    if server.cfg.graceful_timeout < settings.drain_s + process.LEAVE_S:",
        "    if False:",
        "test_a_graceful_timeout_that_would_cut_streams_is_refused",
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
        "    _end_streams(app, STREAM_END_S)\n    app.extensions",
        "    app.extensions",
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
        "a worker that leaves ends its engine",
        '    app.extensions["endstop"].engine.stop(JOIN_S)\n',
        "",
        "test_a_worker_that_leaves_ends_its_streams_then_its_engine_then_itself",
    ),
    process(
        "a worker that leaves is not torn down",
        "    sys.stderr.flush()\n    os._exit(0)\n",
        "    sys.stderr.flush()\n",
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
        "            limit_reads(self.parser.unreader, self.sock, HEAD_S)\n",
        "            pass\n",
        "test_a_head_that_does_not_come_is_given_up[gthread]",
    ),
    gthread(
        "probes have threads of their own",
        "self.probe_pool if _is_probe(conn.sock) else self.tpool",
        "self.tpool",
        "test_probes_are_answered_with_every_slot_place_and_thread_taken[gthread]",
    ),
    gthread(
        "the first byte is waited for on the loop",
        """\
        self.pending_conns.append(conn)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))
""",
        "        self.enqueue_req(conn)\n",
        "test_a_crowd_that_says_nothing_takes_no_thread[gthread]",
    ),
    gthread(
        "a connection that is closed lingers in the pool",
        """\
            util.close_graceful(conn.sock, timeout=LINGER_S)
            conn.close = lambda graceful=False: util.close(conn.sock)
""",
        "            pass\n",
        "tests/test_process.py::test_clients_that_keep_their_sockets_do_not_hold_up_the_threaded_worker",
    ),
    gthread(
        "a worker that leaves refuses at once",
        """\
            for listener in self.sockets:
                listener.close()
""",
        "            pass\n",
        "tests/test_process.py::test_a_worker_that_is_told_alone_closes_its_door",
    ),
    gthread(
        "a worker that leaves does not wait for a first byte",
        """\
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)
""",
        "",
        "test_a_worker_that_leaves_does_not_wait_for_a_first_byte",
    ),
]

MUTATIONS: list[Mutation] = [*_SIGNALS, *_LEAVING, *_THREADS]

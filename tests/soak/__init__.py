"""The soak: a real server, thousands of streams from clients that behave badly at random, and a judge.

    oracle.py        what the model says: a function of the prompt and the place in the answer
    faults.py        what goes wrong inside the engine, how often, and the count of it
    runner.py        the model: the oracle's arithmetic, over a cache of its own
    wsgi.py          the server's app: the product's own but for the model, with counters to look at
    gunicorn_conf.py the product's configuration with small socket buffers
    server.py        the server process, and what becomes of it
    exchange.py      one HTTP exchange over a socket that never blocks
    asks.py          what a client asks for, and the answer that is due
    clients.py       the ways to behave
    garbage.py       what is no request
    storm.py         what happens to the process: signals, a dead engine, a step that never returns
    judge.py         the verdict on what one client has seen of one stream
    ledger.py        what is known about all of them, against the server's own log
    run.py           the phases of a run
    report.py        the table and the line of JSON

The hook through which faults come is the model itself, and it lives here: nothing that is served imports from
`tests`, and no variable or route of the product leads to it (tests/soak/test_hook.py).
"""

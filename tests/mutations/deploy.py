"""Guards of the files that servers are deployed with: times, keys, and what lies between a client and a server."""

from tests.mutations.mutation import Mutation, taking_from

image = taking_from("Dockerfile", "tests/deploy/test_docker.py")
nginx = taking_from("deploy/nginx.conf", "tests/deploy/test_proxies.py")
caddy = taking_from("deploy/Caddyfile", "tests/deploy/test_proxies.py")
unit = taking_from("deploy/endstop.service", "tests/deploy/test_systemd.py")
pods = taking_from("deploy/kubernetes.yaml", "tests/deploy/test_kubernetes.py")
build = taking_from("bin/pre_compile", "tests/deploy/test_heroku.py")

MUTATIONS: list[Mutation] = [
    nginx(
        "nginx sends no request twice",
        "        proxy_next_upstream off;\n",
        "",
        "test_a_request_is_sent_once",
    ),
    nginx(
        "nginx tells a stream that was cut from one that has ended",
        "        proxy_http_version 1.1;\n",
        "",
        "test_a_stream_that_breaks_off_is_seen_to",
    ),
    nginx(
        "nginx compresses no stream",
        "        gzip off;\n",
        "",
        "test_each_token_and_each_ping_arrives_when_it_is_sent",
    ),
    caddy(
        "Caddy sends no request twice",
        "\t\t\tkeepalive off\n",
        "",
        "test_a_request_is_sent_once",
    ),
    caddy(
        "Caddy says that a body is too large",
        "\trespond @too_large",
        "\t#",
        "test_a_body_that_is_too_large_is_refused_in_the_servers_words",
    ),
    unit(
        "systemd waits until the server has drained",
        "TimeoutStopSec=35",
        "TimeoutStopSec=25",
        "test_it_is_given_the_time_to_drain",
    ),
    pods(
        "Kubernetes waits until the server has drained",
        "terminationGracePeriodSeconds: 40",
        "terminationGracePeriodSeconds: 30",
        "test_it_is_given_the_time_to_drain",
    ),
    pods(
        "a Service sets no variables",
        "enableServiceLinks: false",
        "enableServiceLinks: true",
        "test_a_service_of_this_name_does_not_stop_the_start",
    ),
    image(
        "the image's probe asks no proxy",
        "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); "
        "c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)",
        "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health')",
        "test_what_the_image_has_serves_and_its_probe_tells_life_from_death",
    ),
    build(
        "a build for Heroku without an index of CPU builds stops at once",
        '[ -z "${PIP_EXTRA_INDEX_URL:-}" ]',
        "false",
        "test_a_build_that_cannot_work_is_refused_at_once",
    ),
]

"""Guards of what an operator sees: numbers that add up, names of requests, heartbeats that disturb nobody."""

from tests.mutations.mutation import Mutation, taking_from

engine = taking_from("worker/engine/engine.py", "tests/observe/test_metrics.py")
tallies = taking_from("worker/observe/tallies.py", "tests/observe/test_tallies.py")
heartbeat = taking_from("worker/observe/heartbeat.py", "tests/observe/test_heartbeat.py")
request_id = taking_from("worker/web/request_id.py", "tests/web/test_request_id.py")

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
]

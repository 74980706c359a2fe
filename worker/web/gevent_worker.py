"""gunicorn's gevent worker, leaving as `worker.web.draining` says."""

from gunicorn.workers.ggevent import GeventWorker

from worker.web.draining import DrainingWorker


class EndstopGeventWorker(DrainingWorker, GeventWorker):  # type: ignore[misc]
    """A greenlet per connection."""

# The server in an image. docs/deploy.md says how it is built and run; tests/deploy/test_docker.py holds this file to it.
#
# One argument makes the variant. TORCH_INDEX names the index that torch comes from: PyTorch's own for CPU builds gives an
# image of 1.2 GB. Without it torch is what pip finds, which on x86-64 brings CUDA, and several GB of it.
#
# Build on the kind of CPU that will serve: the native kernels are made for the one that they are built on, and on
# another one torch computes instead, in about twice the time.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/endstop
ENV PATH=/opt/endstop/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /srv/endstop
COPY requirements.txt ./
ARG TORCH_INDEX=
# torch goes first and alone: its pin is satisfied by any of its builds, and nothing after it then pulls another.
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep -o '^torch==[^ ]*' requirements.txt)" \
    && pip install -r requirements.txt
COPY app.py wsgi.py gunicorn.conf.py ./
COPY worker worker
COPY models/endstop-tiny models/endstop-tiny
# The headers and torch's own tests have done their work: 150 MB.
RUN python -m worker.engine.native \
    && python -m compileall -q worker \
    && torch="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch" \
    && rm -rf "$torch/include" "$torch/test" "$torch"/bin/test_*

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/endstop --create-home endstop
COPY --from=build /opt/endstop /opt/endstop
COPY --from=build /srv/endstop /srv/endstop
# Triton, which computes attention on a GPU, compiles a small launcher in C when the server starts.
# hadolint ignore=DL3008
RUN if /opt/endstop/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
WORKDIR /srv/endstop
# The volume keeps models that were downloaded.
ENV PATH=/opt/endstop/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PORT=8000 HOME=/var/lib/endstop
VOLUME /var/lib/endstop
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# /health is 200 while the model loads. Not urllib: it would ask a proxy that HTTP_PROXY names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
CMD ["gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"]

# samdiffsr with its page and API. The model is inside: nothing is downloaded when it runs.
#
#   docker build -t samdiffsr .                                   # CPU
#   docker build -t samdiffsr --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .
#   docker run --rm -p 127.0.0.1:8000:8000 samdiffsr              # the page at http://127.0.0.1:8000
#   docker run --rm -v "$PWD:/pictures" samdiffsr upscale photo.jpg -o large/
#
# tests/container.sh runs the same steps in a bare virtual environment, where there is no docker.
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# torch first and alone: without its index a plain "torch" is a CUDA build of several gigabytes.
COPY constraints.txt /build/
RUN pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple "$(grep '^torch==' /build/constraints.txt)"

COPY pyproject.toml README.md LICENSE /build/
COPY src /build/src
RUN pip install -c /build/constraints.txt '/build[web]' && rm -rf /build

RUN useradd --create-home --uid 10001 samdiffsr && mkdir /pictures && chown samdiffsr /pictures
USER samdiffsr
WORKDIR /pictures

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]

ENTRYPOINT ["samdiffsr"]
CMD ["serve", "--host", "0.0.0.0"]

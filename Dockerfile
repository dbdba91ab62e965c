# One image for the API, the workers and rq-dashboard:  docker build -t dfastllm .
#
# The base may be any image with Python 3.11 or newer, its venv module and glibc.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS dependencies
# An index of torch's wheels. Empty: pip's own, whose wheels for x86-64 bring CUDA along and run on
# CPUs as well. PyTorch's page "Get started" names one of wheels without CUDA, a tenth as large.
ARG TORCH_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
RUN python3 -m venv /opt/venv
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN if [ -n "$TORCH_INDEX_URL" ]; then \
      pip install --index-url "$TORCH_INDEX_URL" "$(grep '^torch==' constraints.txt)"; \
    fi
# What the package needs, without the package: this layer outlives changes of our own code.
RUN python -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
parts = ('api', 'worker', 'embedded', 'dashboard', 'otel'); \
print(*project['dependencies'], *(name for part in parts for name in extras[part]), sep='\n')" \
      > requirements.txt && \
    pip install -c constraints.txt -r requirements.txt

FROM dependencies AS package
COPY README.md LICENSE NOTICE ./
COPY api api
COPY worker worker
COPY engine engine
RUN pip install --no-deps --target /opt/dfastllm .

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --user-group --create-home dfastllm && \
    install -d -o dfastllm -g dfastllm /var/cache/dfastllm /var/lib/dfastllm
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=package /opt/dfastllm /opt/dfastllm
# The cache holds the kernels that a worker compiles at its first start on a kind of CPU, lib what
# clients upload.
ENV PATH=/opt/dfastllm/bin:/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/dfastllm \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/cache/dfastllm \
    VDIFF_FILES_DIR=/var/lib/dfastllm/files
USER 10001:10001
WORKDIR /home/dfastllm
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=10s --start-period=180s --retries=3 \
    CMD ["python", "-P", "-m", "worker.alive"]
ENTRYPOINT ["dfastllm"]
CMD ["--help"]

# One image for the code location, web server, daemon, Celery's workers, runs and steps. docs/deploy.md says how each
# is started. No key is needed to build it, and none is in it.

FROM python:3.11-slim-bookworm AS build
ARG EXTRAS=deploy
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/pipeline
WORKDIR /src
COPY pyproject.toml README.md requirements.lock ./
COPY ideogram_pipeline ideogram_pipeline
RUN /opt/pipeline/bin/pip install --constraint requirements.lock ".[${EXTRAS}]" \
 && /opt/pipeline/bin/python -m compileall -q -j 0 /opt/pipeline/lib

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home --home-dir /home/pipeline pipeline \
 && install --directory --owner pipeline --group pipeline /opt/dagster
COPY --from=build /opt/pipeline /opt/pipeline
COPY --chown=pipeline:pipeline deploy/dagster.yaml deploy/celery.yaml /opt/dagster/
ENV PATH=/opt/pipeline/bin:$PATH \
    DAGSTER_DISABLE_TELEMETRY=yes \
    PYTHONUNBUFFERED=1
WORKDIR /opt/dagster
USER 10001
EXPOSE 4000
CMD ["dagster", "api", "grpc", "--host", "0.0.0.0", "--port", "4000", "--module-name", "ideogram_pipeline.definitions"]

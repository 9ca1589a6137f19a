# docker build -t lipaudit .
# docker build -t lipaudit:cpu --build-arg TORCH_INDEX=URL .   # with the index of PyTorch's CPU wheels: a smaller image
# docker run --rm -v "$PWD/reports:/work/reports" lipaudit run
FROM python:3.11-slim

ARG TORCH_INDEX=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY lipaudit lipaudit
COPY templates templates
# The default wheels of torch bring CUDA along; those without it lie in an index of their own.
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"; \
    fi \
    && pip install --no-cache-dir . \
    && rm -rf /src

RUN useradd --create-home --uid 1000 auditor && mkdir -p /work/reports && chown -R auditor /work
USER auditor
WORKDIR /work
# The bundled model and digits need no network; give LIPAUDIT_OFFLINE=0 to fetch data sets and weights.
ENV LIPAUDIT_OFFLINE=1
ENTRYPOINT ["lipaudit"]
CMD ["run"]

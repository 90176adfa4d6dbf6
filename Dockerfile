FROM node:24-slim AS page
WORKDIR /app/web
COPY web /app/web
RUN npm ci --ignore-scripts && npm run build && find ../api/static -type f '(' -name '*.js' -o -name '*.css' -o -name '*.svg' ')' -exec gzip -9 -k {} +

FROM python:3.11-slim AS packages
COPY requirements/runtime.txt /tmp/runtime.txt
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes -r /tmp/runtime.txt

FROM python:3.11-slim
RUN useradd --system --uid 10001 --create-home --home-dir /data nowserving \
    && printf '#!/bin/sh\nexec python -m cli.main "$@"\n' > /usr/local/bin/nowserving \
    && chmod 755 /usr/local/bin/nowserving
COPY --from=packages /venv /venv
COPY . /app
COPY --from=page /app/api/static /app/api/static
WORKDIR /app
# Nothing may be written there later, so each start would compile it again.
RUN python -m compileall -q api deploy models workers
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    NOWSERVING_DATA_DIR=/data \
    NOWSERVING_HOST=0.0.0.0 \
    NOWSERVING_ALLOWED_HOSTS=*
USER 10001
VOLUME /data
EXPOSE 8000 5555
ENTRYPOINT ["nowserving"]
CMD ["api"]

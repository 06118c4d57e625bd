FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/attachd
COPY pyproject.toml README.md LICENSE ./
COPY service ./service
RUN /opt/attachd/bin/pip install --no-cache-dir .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin attachd \
    && install --directory --owner attachd --group attachd --mode 0700 /data
COPY --from=build /opt/attachd /opt/attachd
# the operations listener is inside the container's network only: publish 8080, never 9080
ENV PATH=/opt/attachd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ATTACHD_DATA=/data \
    ATTACHD_LISTEN=0.0.0.0:8080 \
    ATTACHD_OPS_LISTEN=0.0.0.0:9080
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9080/livez', timeout=2)"]
ENTRYPOINT ["attachd"]
CMD ["serve"]

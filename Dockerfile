# The control plane: one image, whose command is the role: api, worker or migrate.
ARG NODE_IMAGE=node:24-slim
FROM $NODE_IMAGE AS dependencies
WORKDIR /chowder
COPY package.json package-lock.json ./
# Without what only a laptop needs: an embedded PostgreSQL, and a Node.js of its own.
RUN npm ci --omit=dev --omit=optional --ignore-scripts --no-audit --no-fund

FROM $NODE_IMAGE
RUN rm -rf /usr/local/lib/node_modules /usr/local/bin/npm /usr/local/bin/npx /usr/local/bin/corepack /opt/yarn* \
  && useradd --uid 10000 --user-group --home-dir /var/lib/chowder --create-home --shell /usr/sbin/nologin chowder
WORKDIR /chowder
COPY --from=dependencies /chowder/node_modules node_modules
COPY package.json openapi.json ./
COPY releases releases
COPY migrations migrations
COPY docs docs
COPY src src
# Shown in /readyz, in the log and in the metrics.
ARG COMMIT=
RUN printf %s "$COMMIT" >.commit
ENV NODE_ENV=production HOST=0.0.0.0 METRICS_PORT=0.0.0.0:9464 CHOWDER_DATA_DIR=/var/lib/chowder
USER chowder
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
  CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.METRICS_PORT.split(':').pop()}/healthz`).then((a) => process.exit(a.ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["node", "--max-semi-space-size=8", "src/main.ts"]
CMD ["all"]

FROM node:20-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm ci --loglevel=error
COPY tsconfig.json tsconfig.build.json nest-cli.json ./
COPY src ./src
COPY console ./console
RUN npm run build && npm ci --omit=dev --loglevel=error

FROM node:20-bookworm-slim
ENV NODE_ENV=production \
    COLLOQUY_DATA_DIR=/data
WORKDIR /app
COPY --from=build /app/node_modules ./node_modules
COPY --from=build /app/dist ./dist
COPY package.json ./
COPY scripts ./scripts
# The contract of the topic, as it is served.
COPY schemas ./schemas
COPY docker/entrypoint.mjs ./docker/
# PostgreSQL, when it is the embedded one, refuses root, and so do we.
RUN mkdir /data && chown node:node /data
VOLUME /data
USER node
EXPOSE 3000
# The port may be set otherwise; Node is there, curl is not.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.PORT || 3000}/health/live`).then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["node", "--max-semi-space-size=32", "docker/entrypoint.mjs"]
CMD ["dist/main.js"]

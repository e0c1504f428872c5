import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { extname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import { ApiError } from '../http/problem.js';

/** Where the build puts the page. */
const FOLDER = join(__dirname, 'files');

/**
 * The page runs and loads its own files alone, and talks to this server alone: whatever a message says, nothing of it can
 * run or call elsewhere. Pictures within messages are `data:` addresses.
 */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join('; ');

const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
};

interface PageFile {
  readonly type: string;
  readonly plain: Buffer;
  readonly gzipped: Buffer;
}

/** The files hold no data of tenants, so they need no key; what the page asks the API for does. */
const OPEN = { config: { access: 'public' } } as const;
/** The names of these files have a hash of their content, so that an answer never changes. */
const FOR_EVER = 'public, max-age=31536000, immutable';

/** Serves the built page at `/console`. Files are read once, at the first request. */
export function servePage(fastify: FastifyInstance): void {
  let files: ReadonlyMap<string, PageFile> | undefined;
  const send = (request: FastifyRequest, reply: FastifyReply, name: string, caching: string): void => {
    files ??= readFiles();
    const file = files.get(name);
    if (!file) {
      throw new ApiError(
        'not-found',
        files.size === 0
          ? 'The console is not in this build: make one with `npm run build`.'
          : `The console has no file ${name}. After an upgrade of the service, load the page again.`,
      );
    }
    const isZipped = /\bgzip\b/.test(request.headers['accept-encoding'] ?? '');
    void reply
      .header('content-security-policy', POLICY)
      .header('cache-control', caching)
      .header('vary', 'Accept-Encoding')
      .headers(isZipped ? { 'content-encoding': 'gzip' } : {})
      .type(file.type)
      .send(isZipped ? file.gzipped : file.plain);
  };
  for (const path of ['/console', '/console/']) {
    fastify.get(path, OPEN, (request, reply) => {
      send(request, reply, 'index.html', 'no-cache');
    });
  }
  fastify.get<{ Params: { file: string } }>('/console/assets/:file', OPEN, (request, reply) => {
    send(request, reply, `assets/${request.params.file}`, FOR_EVER);
  });
}

function readFiles(): ReadonlyMap<string, PageFile> {
  if (!existsSync(FOLDER)) return new Map();
  const names = readdirSync(FOLDER, { recursive: true, encoding: 'utf8' });
  return new Map(
    names.flatMap((name) => {
      const type = TYPES[extname(name)];
      if (type === undefined) return [];
      const plain = readFileSync(join(FOLDER, name));
      return [[name.replaceAll('\\', '/'), { type, plain, gzipped: gzipSync(plain, { level: 9 }) }]];
    }),
  );
}

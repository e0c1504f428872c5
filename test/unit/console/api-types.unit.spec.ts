import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { NestFactory } from '@nestjs/core';
import { type NestFastifyApplication } from '@nestjs/platform-fastify';
import { AppModule } from '../../../src/app.module.js';
import { type Config } from '../../../src/config.js';
import { configureApp, createHttpAdapter } from '../../../src/http/server.js';

const ROOT = join(__dirname, '../../..');
const TYPES = join(ROOT, 'console/src/api/types.ts');

interface Operation {
  parameters?: { in?: string; $ref?: string }[];
  responses: Record<string, unknown>;
}
interface Document {
  paths: Record<string, Record<string, Operation>>;
}

/** The OpenAPI document of the service, from its controllers alone: nothing is started and no database is asked. */
async function document(): Promise<Document> {
  const settings = {
    server: { bodyLimit: 1, messageLimit: 1, corsOrigins: [] },
    auth: { mode: 'none' as const, keys: [] },
  };
  const none = { storage: {}, sessions: {}, kafka: {}, llm: {}, tenants: {} };
  const app = await NestFactory.create<NestFastifyApplication>(
    AppModule.create({ ...settings, ...none } as unknown as Config, 'postgres://nowhere'),
    createHttpAdapter(settings),
    { preview: true, logger: false, abortOnError: false },
  );
  configureApp(app, { ...settings, version: '0' });
  await app.init();
  const fastify = app.getHttpAdapter().getInstance();
  await fastify.ready();
  const answer = await fastify.inject('/openapi.json');
  await app.close();
  return answer.json();
}

/** What the console uses of it: its own protocol, answers that succeed, and of the headers the one that names a cell. */
function reduced({ paths, ...rest }: Document): Document {
  const own = Object.entries(paths).filter(([path]) => /^\/(v1|health)\//.test(path));
  for (const [, operations] of own) {
    for (const operation of Object.values(operations)) {
      operation.parameters = (operation.parameters ?? []).filter(
        (one) => one.in === 'path' || one.in === 'query' || one.$ref === '#/components/parameters/Cell',
      );
      operation.responses = Object.fromEntries(
        Object.entries(operation.responses).filter(([status]) => status.startsWith('2')),
      );
    }
  }
  return { ...rest, paths: Object.fromEntries(own) };
}

describe('the types with which the console calls the API', () => {
  it('given the OpenAPI document, when types are made from it, then they are those that the console has', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'colloquy-openapi-'));
    try {
      const file = join(folder, 'openapi.json');
      writeFileSync(file, JSON.stringify(reduced(await document())));
      const cli = join(dirname(require.resolve('openapi-typescript')), '../bin/cli.js');
      const types = execFileSync(process.execPath, [cli, file], {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      if (process.env['UPDATE_DOCS'] === '1') writeFileSync(TYPES, types);
      // When this fails, run `npm run console:api`.
      expect(readFileSync(TYPES, 'utf8')).toBe(types);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

import { Controller, Get, Module, Post, Body } from '@nestjs/common';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { createHash } from 'node:crypto';
import { connect } from 'node:net';
import { z } from 'zod';
import { Public, Requires } from '../../../src/access/requirement.js';
import { type Surface } from '../../../src/http/surfaces.js';
import { startApp } from './fixture.js';

const apps: NestFastifyApplication[] = [];
afterEach(() => Promise.all(apps.splice(0).map((app) => app.close())));
const start = async (settings: Parameters<typeof startApp>[0]): Promise<NestFastifyApplication> => {
  const app = await startApp(settings);
  apps.push(app);
  return app;
};

const keys = [
  { name: 'alice', tenant: 'acme', sha256: createHash('sha256').update('alice-key').digest('hex') },
];
const auth = { mode: 'api-key' as const, keys };

describe('a route', () => {
  it('given a route without an access rule, when the service starts, then the start fails and names the route', async () => {
    @Controller('v1/forgotten')
    class ForgottenController {
      @Get('route')
      get() {
        return {};
      }
    }
    @Module({ controllers: [ForgottenController] })
    class ForgottenModule {}

    await expect(startApp({ module: ForgottenModule })).rejects.toThrow(
      /GET \/v1\/forgotten\/route does not say who may call it/,
    );
  });

  it('given a scope that the caller lacks, when the route is called, then the call is forbidden before the body is read', async () => {
    @Controller('v1')
    class ScopedController {
      @Requires('admin')
      @Post('admin')
      post() {
        return {};
      }

      @Requires('erase')
      @Post('erase')
      erase() {
        return { erased: true };
      }
    }
    @Module({ controllers: [ScopedController] })
    class ScopedModule {}
    const app = await start({ module: ScopedModule, auth });
    const post = (url: string) =>
      app.inject({
        method: 'POST',
        url,
        headers: { authorization: 'Bearer alice-key', 'content-type': 'application/json' },
        payload: url === '/v1/admin' ? '{' : '{}',
      });

    // The body is broken JSON, which would give a 400 if the body were read.
    expect((await post('/v1/admin')).json()).toMatchObject({ status: 403, code: 'forbidden' });
    expect((await post('/v1/erase')).json()).toEqual({ erased: true });
  });
});

describe('a surface', () => {
  @Controller('other/v1')
  class OtherController {
    @Requires('sessions:read')
    @Get('broken')
    broken() {
      throw new Error('hidden text');
    }

    @Requires('sessions:write')
    @Post('things')
    things(@Body({ schema: z.strictObject({ a: z.string() }) }) body: object) {
      return body;
    }

    @Public()
    @Get('open')
    open() {
      return {};
    }
  }
  @Module({ controllers: [OtherController] })
  class OtherModule {}

  const other: Surface = {
    prefix: '/other/v1',
    renderError: (error) => ({
      status: (error as { code?: string }).code === 'unauthenticated' ? 401 : 418,
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ error: { message: (error as Error).message.slice(0, 20) } }),
    }),
    document: {
      tag: 'Other',
      contentType: 'application/json',
      errors: z.object({ error: z.object({ message: z.string() }) }),
    },
  };
  const bearer = { authorization: 'Bearer alice-key' };

  it.each([
    ['an error of a handler', 'GET', '/other/v1/broken', bearer, undefined, 418],
    ['a caller who is not known', 'GET', '/other/v1/broken', {}, undefined, 401],
    ['a path that leads nowhere', 'GET', '/other/v1/nothing', bearer, undefined, 418],
    ['a method that is not there', 'DELETE', '/other/v1/things', bearer, undefined, 418],
    ['a body that is no JSON', 'POST', '/other/v1/things', bearer, '{', 418],
    ['a body of a wrong shape', 'POST', '/other/v1/things', bearer, '{"b": 1}', 418],
    ['a body that is too large', 'POST', '/other/v1/things', bearer, `{"a": "${'x'.repeat(200)}"}`, 418],
  ] as const)(
    'given %s below its path, when it is answered, then it is in the form of the surface',
    async (_, method, url, headers, payload, status) => {
      const app = await start({ module: OtherModule, auth, bodyLimit: 100, surfaces: [other] });
      const answer = await app.inject({
        method,
        url,
        headers: { ...headers, ...(payload !== undefined && { 'content-type': 'application/json' }) },
        ...(payload !== undefined && { payload }),
      });
      expect(answer.statusCode).toBe(status);
      expect(Object.keys(answer.json())).toEqual(['error']);
      // Paths outside of the surface keep the error form of the service.
      expect((await app.inject('/other/v2')).json()).toMatchObject({ code: 'unauthenticated' });
    },
  );
});

describe('a method that Node knows and no route serves', () => {
  it.each(['QUERY', 'PURGE', 'MKCOL', 'REPORT', 'SEARCH', 'LOCK', 'TRACE', 'UNSUBSCRIBE', 'M-SEARCH'])(
    'given %s, when it is sent to any path, then it is refused as the client’s mistake',
    async (method) => {
      const app = await start({});
      await app.listen(0, '127.0.0.1');
      const { port } = new URL(await app.getUrl());
      for (const path of ['/health/live', '/v1/notes', '/nowhere', '/openapi.json']) {
        const answer = await new Promise<string>((resolve, reject) => {
          let text = '';
          const socket = connect(Number(port), '127.0.0.1', () => {
            socket.write(`${method} ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`);
          });
          socket.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
          socket.once('end', () => {
            resolve(text);
          });
          socket.once('error', reject);
        });
        expect(answer).toMatch(/^HTTP\/1\.1 (400|404|405|501) /);
      }
    },
  );
});

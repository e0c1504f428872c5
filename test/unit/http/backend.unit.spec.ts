import { Body, Controller, Get, HttpCode, Inject, Logger, Module, Post } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import type { RouteHandlerMethod } from 'fastify';
import { z } from 'zod';
import { Requires } from '../../../src/access/requirement.js';
import { type Backend } from '../../../src/http/backend.js';
import { BackendAdapter } from '../../../src/http/backend-adapter.js';
import { ApiError } from '../../../src/http/problem.js';
import { type AnsweredRequest } from '../../../src/http/request-log.js';
import { configureApp, configureHandlers, createHttpAdapter } from '../../../src/http/server.js';
import { Unanswered } from '../../../src/http/unanswered.js';

const NAME = Symbol('name');
const Text = z.strictObject({ text: z.string() });

@Controller('v1/things/:id')
class ThingsController {
  constructor(@Inject(NAME) private readonly name: string) {}

  @Requires('sessions:read')
  @Get()
  who() {
    return { answeredBy: this.name };
  }

  @Requires('sessions:write')
  @Post()
  @HttpCode(201)
  echo(@Body({ schema: Text }) { text }: z.infer<typeof Text>) {
    return { answeredBy: this.name, text };
  }

  @Requires('sessions:read')
  @Get('broken')
  broken() {
    throw new ApiError('session-not-found', `${this.name} has no such session.`);
  }
}

@Controller('v1/here')
class HereController {
  @Requires('sessions:read')
  @Get()
  here() {
    return {};
  }
}

@Module({ controllers: [ThingsController], providers: [{ provide: NAME, useValue: 'the server' }] })
class WithServer {}
@Module({ controllers: [ThingsController], providers: [{ provide: NAME, useValue: 'the backend' }] })
class WithoutServer {}
@Module({ imports: [WithServer], controllers: [HereController] })
class All {}

const apps: NestFastifyApplication[] = [];
let lastRequest: Promise<void> | undefined;

/** A server, and an application without one that answers the requests of the tenant `elsewhere`. */
async function start() {
  Logger.overrideLogger(false);
  lastRequest = undefined;
  const adapter = new BackendAdapter(() => lastRequest);
  const other = await NestFactory.create<NestFastifyApplication>(WithoutServer, adapter, {
    abortOnError: false,
  });
  configureHandlers(other);
  await other.init();
  const behind: string[] = [];
  const backend: Backend = {
    ...{ handlers: adapter.handlers, answeredListeners: adapter.answeredListeners },
    unanswered: new Unanswered(),
    isBehind: (tenant) => behind.includes(tenant),
  };

  const log: AnsweredRequest[] = [];
  const own = new Unanswered();
  const settings = {
    server: { bodyLimit: 1_000_000, messageLimit: 1_000_000, corsOrigins: [] },
    auth: { mode: 'none' as const, keys: [] },
    version: '0',
    onAnswered: (request: AnsweredRequest) => void log.push(request),
    elsewhere: ({ caller }: { caller: { tenant: string } | null }) =>
      caller?.tenant === 'elsewhere' ? backend : undefined,
    unanswered: own,
  };
  const server = createHttpAdapter(settings);
  const app = await NestFactory.create<NestFastifyApplication>(All, server, { abortOnError: false });
  configureApp(app, settings);
  await app.init();
  const fastify = app.getHttpAdapter().getInstance();
  await fastify.ready();
  apps.push(app, other);
  const ask = (method: 'GET' | 'HEAD' | 'POST', url: string, tenant: string, payload?: object) =>
    fastify.inject({ method, url, headers: { 'colloquy-tenant': tenant }, ...(payload && { payload }) });
  return { ask, adapter, server, backend, own, behind, log, other };
}

afterEach(async () => {
  lastRequest = undefined;
  for (const app of apps.splice(0)) await app.close();
});

it('given an application without a server, when requests are for it, then its handlers answer, and those of the server answer the others', async () => {
  const { ask } = await start();
  const answers = await Promise.all([
    ask('GET', '/v1/things/1', 'elsewhere'),
    ask('GET', '/v1/things/1', 'here'),
    ask('POST', '/v1/things/1', 'elsewhere', { text: 'said' }),
  ]);
  expect(answers.map(({ statusCode }) => statusCode)).toEqual([200, 200, 201]);
  expect(answers.map((answer) => answer.json<unknown>())).toEqual([
    { answeredBy: 'the backend' },
    { answeredBy: 'the server' },
    { answeredBy: 'the backend', text: 'said' },
  ]);
  const head = await ask('HEAD', '/v1/things/1', 'elsewhere');
  expect(head.statusCode).toBe(200);
  expect(head.body).toBe('');
  expect(Number(head.headers['content-length'])).toBe('{"answeredBy":"the backend"}'.length);
});

it('given an application without a server, when its handlers or validations refuse, then the answer is a problem document like any other', async () => {
  const { ask } = await start();
  const refused = await ask('GET', '/v1/things/1/broken', 'elsewhere');
  expect(refused.json()).toMatchObject({
    status: 404,
    code: 'session-not-found',
    detail: 'the backend has no such session.',
  });
  const invalid = await ask('POST', '/v1/things/1', 'elsewhere', { text: 1 });
  expect(invalid.json()).toMatchObject({ status: 400, code: 'invalid-request' });
  expect(invalid.headers['x-correlation-id']).toBeDefined();
});

it('given a route that the application without a server does not have, when it is to answer, then that is an error, and not the answer of another', async () => {
  const { ask } = await start();
  expect((await ask('GET', '/v1/here', 'here')).statusCode).toBe(200);
  expect((await ask('GET', '/v1/here', 'elsewhere')).statusCode).toBe(500);
});

it('given requests of both, when they have ended, then each application hears of its own, and the log of all', async () => {
  const { ask, adapter, server, log } = await start();
  const heard = { theirs: 0, own: 0 };
  adapter.answeredListeners.push(() => (heard.theirs += 1));
  (server as unknown as BackendAdapter).answeredListeners.push(() => (heard.own += 1));
  await ask('GET', '/v1/things/1', 'elsewhere');
  await ask('GET', '/v1/things/1', 'elsewhere');
  await ask('GET', '/v1/things/1', 'here');
  expect(heard).toEqual({ theirs: 2, own: 1 });
  expect(log).toHaveLength(3);
  expect(log[0]).toMatchObject({ route: '/v1/things/:id', tenant: 'elsewhere', status: 200 });
});

it('given a tenant whose appends wait there, when a body of it comes, then it is refused before it is read', async () => {
  const { ask, behind } = await start();
  behind.push('elsewhere', 'here');
  expect((await ask('POST', '/v1/things/1', 'elsewhere', { text: 'x' })).json()).toMatchObject({
    status: 503,
    code: 'overloaded',
  });
  expect((await ask('POST', '/v1/things/1', 'here', { text: 'x' })).statusCode).toBe(201);
});

it('given a request that waits for the other application, when those that wait are looked at, then it is one of its own, and of no other', async () => {
  const { ask, backend, own } = await start();
  backend.unanswered.begin();
  own.begin();
  const seen: { theirs: boolean; own: boolean }[] = [];
  (backend.handlers as Map<string, RouteHandlerMethod>).set('GET /v1/things/:id', async (_request, reply) => {
    await new Promise((resolve) => setTimeout(resolve, 5));
    seen.push({ theirs: backend.unanswered.longestMs > 0, own: own.longestMs > 0 });
    await reply.send('{}');
  });
  await ask('GET', '/v1/things/1', 'elsewhere');
  expect(seen).toEqual([{ theirs: true, own: false }]);
});

it('given requests that may still come, when the application without a server is closed, then it waits for the last of them', async () => {
  const { other } = await start();
  let noMore = (): void => undefined;
  lastRequest = new Promise((resolve) => (noMore = resolve));
  let isClosed = false;
  const closing = other.close().then(() => (isClosed = true));
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(isClosed).toBe(false);
  noMore();
  await closing;
});

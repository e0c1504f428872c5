import { once } from 'node:events';
import { type ServerResponse } from 'node:http';
import { Connection, type ServerEvent } from '../../../src/client/connection.js';
import {
  breaks,
  json,
  refuses,
  type ScriptedServer,
  sse,
  startScriptedServer,
  streams,
} from './scripted-server.js';

const KEYED = { 'idempotency-key': 'k' };

describe('a connection to a service', () => {
  let server: ScriptedServer;
  let connection: Connection;

  beforeAll(async () => {
    server = await startScriptedServer();
    connection = new Connection((path, init) => fetch(server.url + path, init), {
      authorization: 'Bearer a',
    });
  });
  afterAll(() => server.close());

  describe('requests', () => {
    it('given a body and headers, when a request is sent, then they arrive together with the headers of the connection', async () => {
      server.next(json(200, { a: 1 }));
      expect(await connection.json('POST', '/x', { body: { b: 'ü' }, headers: KEYED })).toEqual({ a: 1 });
      expect(server.asked).toMatchObject([
        { method: 'POST', path: '/x', body: { b: 'ü' }, headers: { authorization: 'Bearer a', ...KEYED } },
      ]);
      expect(server.asked[0]?.headers['content-type']).toBe('application/json');
    });

    it('given no body, when a request is sent, then it has no content type, which some servers would refuse', async () => {
      server.next(json(200, {}));
      await connection.json('POST', '/x', { headers: KEYED });
      expect(server.asked[0]?.headers).not.toHaveProperty('content-type');
    });

    it('given an answer without a body, when it comes, then there is nothing', async () => {
      server.next((response) => response.writeHead(204).end());
      expect(await connection.json('DELETE', '/x')).toBeUndefined();
    });

    it('given a problem, when it arrives, then it is thrown with its code, status and document', async () => {
      server.next(refuses(409, 'session-busy'));
      await expect(connection.json('POST', '/x')).rejects.toMatchObject({
        name: 'ColloquyError',
        code: 'session-busy',
        message: 'session-busy.',
        status: 409,
        problem: { type: 'urn:colloquy:problem:session-busy' },
      });
    });

    it('given an error of a proxy that is no problem document, when it arrives, then it is thrown as an internal error', async () => {
      server.next((response) => response.writeHead(502).end('<html>Bad gateway'));
      await expect(connection.json('GET', '/x')).rejects.toMatchObject({
        code: 'internal-error',
        message: 'Bad Gateway',
        status: 502,
        problem: {},
      });
    });
  });

  describe('repeating', () => {
    it('given a service that is unavailable for a while, when a read is sent, then it is tried up to four times', async () => {
      server.next(
        refuses(503, 'database-unavailable'),
        breaks,
        refuses(503, 'overloaded'),
        json(200, { a: 1 }),
      );
      expect(await connection.json('GET', '/x')).toEqual({ a: 1 });
      server.next(refuses(503, 'overloaded'));
      await expect(connection.json('GET', '/x')).rejects.toMatchObject({ code: 'overloaded', status: 503 });
      expect(server.asked).toHaveLength(4);
    });

    it('given a write with a key, when its answer is lost, then it is repeated with the same key', async () => {
      server.next(breaks, json(200, { a: 1 }));
      expect(await connection.json('POST', '/x', { body: { b: 1 }, headers: KEYED })).toEqual({ a: 1 });
      expect(server.asked).toMatchObject([
        { body: { b: 1 }, headers: KEYED },
        { body: { b: 1 }, headers: KEYED },
      ]);
    });

    it.each([
      ['a lost answer', breaks],
      ['a refusal for the moment', refuses(503, 'overloaded')],
    ])('given a write without a key and %s, when it fails, then it is not repeated', async (_, reply) => {
      server.next(reply);
      await expect(connection.json('POST', '/x')).rejects.toThrow();
      expect(server.asked).toHaveLength(1);
    });

    it('given a permanent refusal, when it arrives, then the request is not repeated', async () => {
      server.next(refuses(404, 'session-not-found'));
      await expect(connection.json('GET', '/x')).rejects.toMatchObject({ code: 'session-not-found' });
      expect(server.asked).toHaveLength(1);
    });

    it('given a signal, when it aborts, then the wait ends and the request is not repeated', async () => {
      const controller = new AbortController();
      server.next(() => {
        controller.abort();
      });
      await expect(connection.json('GET', '/x', { signal: controller.signal })).rejects.toThrow(/abort/i);
      expect(server.asked).toHaveLength(1);
    });
  });

  describe('events', () => {
    const collect = async (events: AsyncIterable<ServerEvent>): Promise<ServerEvent[]> => {
      const all: ServerEvent[] = [];
      for await (const event of events) all.push(event);
      return all;
    };

    it('given a stream in chunks of any length, also cut within a character, when it is read, then its events are complete', async () => {
      const bytes = Buffer.from(
        `: keep-alive\n\n${sse('1-0', 'message.delta', { text: '家😀' })}${sse('2-0', 'end', {})}`,
      );
      server.next(streams(Array.from(bytes, (_, at) => bytes.subarray(at, at + 1))));
      expect(await collect(connection.events('GET', '/x'))).toEqual([
        { id: '1-0', event: 'message.delta', data: { text: '家😀' } },
        { id: '2-0', event: 'end', data: {} },
      ]);
      expect(server.asked[0]?.headers['accept']).toBe('text/event-stream');
    });

    it('given a stream that breaks off, when it is read, then the events before the break are returned before the error', async () => {
      server.next(streams([sse('1-0', 'a', {})], 'breaks'));
      const events = connection.events('GET', '/x');
      expect((await events.next()).value).toMatchObject({ id: '1-0' });
      await expect(events.next()).rejects.toThrow();
    });

    it('given a refusal in place of a stream, when it arrives, then it is thrown', async () => {
      server.next(refuses(404, 'not-found'));
      await expect(connection.events('GET', '/x').next()).rejects.toMatchObject({ code: 'not-found' });
    });

    it('given a stream, when its reader stops, then the connection to the service is closed', async () => {
      let gone: Promise<unknown> = Promise.resolve();
      server.next((response: ServerResponse, asked) => {
        gone = once(response, 'close');
        streams([sse('1-0', 'a', {})], 'stays')(response, asked);
      });
      for await (const event of connection.events('GET', '/x')) {
        expect(event.id).toBe('1-0');
        break;
      }
      await gone;
    });
  });
});

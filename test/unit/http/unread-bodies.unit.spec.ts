import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { startApp } from './fixture.js';

const MIB = 1024 * 1024;
const CLIENTS = 20;
/** As many go on to be read at a time, and then there is a pause. */
const AT_A_TIME = 8;
const PAUSE_MS = 20;

describe('bodies of requests that are answered before they are read', () => {
  let app: NestFastifyApplication;
  let port: number;
  /** The server's ends of the connections. */
  let accepted: Socket[];
  let clients: Socket[];

  beforeEach(async () => {
    // Only the pauses are faked: time in them stands still until a test lets it pass.
    jest.useFakeTimers({
      doNotFake: [
        'Date',
        'hrtime',
        'nextTick',
        'performance',
        'queueMicrotask',
        'setImmediate',
        'clearImmediate',
        'setTimeout',
        'clearTimeout',
      ],
    });
    app = await startApp();
    await app.listen(0, '127.0.0.1');
    port = Number(new URL(await app.getUrl()).port);
    accepted = [];
    clients = [];
    app.getHttpServer().on('connection', (socket) => accepted.push(socket));
  });
  afterEach(async () => {
    jest.useRealTimers();
    for (const client of clients) client.destroy();
    await app.close();
  });

  const headOf = (path: string, length: number): string =>
    [`POST ${path} HTTP/1.1`, 'host: localhost', `content-length: ${length}`, '', ''].join('\r\n');

  /** Sends a request to a route that does not exist. Resolves to the connection when it is answered, while the body is still on its way. */
  const refused = async (length: number): Promise<Socket> => {
    const client = connect(port, '127.0.0.1');
    clients.push(client);
    // The server ends connections when it closes.
    client.on('error', () => undefined);
    client.write(headOf('/nowhere', length));
    client.write(Buffer.alloc(length));
    const [answer] = (await once(client, 'data')) as [Buffer];
    expect(answer.toString()).toMatch(/^HTTP\/1.1 404 /);
    return client;
  };
  const refuseMany = () => Promise.all(Array.from({ length: CLIENTS }, () => refused(MIB)));
  const read = () => accepted.filter((socket) => socket.bytesRead > MIB).length;
  const untilRead = async (count: number): Promise<void> => {
    while (read() < count) await new Promise(setImmediate);
  };

  it('given many of them at once, then all are answered before one is read, and a few at a time are read to their ends', async () => {
    await refuseMany();
    await refused(0);
    expect(read()).toBe(0);

    jest.advanceTimersByTime(PAUSE_MS);
    await untilRead(AT_A_TIME);
    await refused(0);
    expect(read()).toBe(AT_A_TIME);

    jest.advanceTimersByTime(2 * PAUSE_MS);
    await untilRead(CLIENTS);
  });

  it('given one whose body has been read, then its connection serves the next request', async () => {
    const client = await refused(MIB);
    jest.advanceTimersByTime(PAUSE_MS);
    client.write(headOf('/v1/nowhere', 0));
    const [answer] = (await once(client, 'data')) as [Buffer];
    expect(answer.toString()).toMatch(/^HTTP\/1.1 404 /);
  });

  it('given bodies that wait to be read, when the server closes, then it does not wait for them', async () => {
    await refuseMany();
    jest.useRealTimers();
    await app.close();
    expect(read()).toBe(0);
  });
});

import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { fakeIntervals } from '../../support/fake-intervals.js';
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
    fakeIntervals();
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

  const headOf = (path: string, framing: string): string =>
    [`POST ${path} HTTP/1.1`, 'host: localhost', 'content-type: application/json', framing, '', ''].join(
      '\r\n',
    );

  /** Sends a request. Resolves to its connection when it is answered, while most of the body is still on its way. */
  const send = async (head: string, body: Buffer, status: number): Promise<Socket> => {
    const client = connect(port, '127.0.0.1');
    clients.push(client);
    // The server ends connections when it closes.
    client.on('error', () => undefined);
    client.write(head);
    client.write(body);
    expect(await statusOf(client)).toBe(status);
    return client;
  };
  const statusOf = async (client: Socket): Promise<number> => {
    const [answer] = (await once(client, 'data')) as [Buffer];
    return Number(answer.toString('latin1', 9, 12));
  };
  /** Sends a body of this length to a route that does not exist. */
  const refused = (length: number) =>
    send(headOf('/nowhere', `content-length: ${length}`), Buffer.alloc(length), 404);
  const refuseMany = () => Promise.all(Array.from({ length: CLIENTS }, () => refused(MIB)));
  const readToTheEnd = () => accepted.filter((socket) => socket.bytesRead > MIB).length;
  const untilRead = async (count: number): Promise<void> => {
    while (readToTheEnd() < count) await new Promise(setImmediate);
  };

  it('given many of them at once, then all are answered before one is read, and a few at a time are read to their ends', async () => {
    await refuseMany();
    await refused(0);
    expect(readToTheEnd()).toBe(0);

    jest.advanceTimersByTime(PAUSE_MS);
    await untilRead(AT_A_TIME);
    await refused(0);
    expect(readToTheEnd()).toBe(AT_A_TIME);

    jest.advanceTimersByTime(2 * PAUSE_MS);
    await untilRead(CLIENTS);
  });

  it('given one whose body has been read, then its connection serves the next request', async () => {
    const client = await refused(MIB);
    jest.advanceTimersByTime(PAUSE_MS);
    client.write(headOf('/nowhere', 'content-length: 0'));
    expect(await statusOf(client)).toBe(404);
  });

  it('given a chunked one for which there is no more room, then it is refused, and the rest of it waits as well', async () => {
    const path = '/v1/notes/a/lines';
    // Bodies are announced and never sent. They leave 32 KiB of the 64 MiB that may be held.
    const announced = 64;
    for (let n = 0; n < announced; n += 1) {
      const client = connect(port, '127.0.0.1').on('error', () => undefined);
      clients.push(client);
      client.write(headOf(path, `content-length: ${MIB - 512}`));
    }
    while (accepted.filter(({ bytesRead }) => bytesRead > 0).length < announced)
      await new Promise(setImmediate);
    await refused(0);

    const length = MIB - 100;
    const head = headOf(path, 'transfer-encoding: chunked');
    const chunk = `${length.toString(16)}\r\n${' '.repeat(length)}\r\n0\r\n\r\n`;
    const client = await send(head, Buffer.from(chunk), 503);
    const server = accepted.find(({ remotePort }) => remotePort === client.localPort);
    // Without a pause the whole of it would be read in these turns of the event loop.
    for (let turn = 0; turn < 200; turn += 1) await new Promise(setImmediate);
    expect(server?.bytesRead).toBeLessThan(length);

    client.write(headOf('/nowhere', 'content-length: 0'));
    jest.advanceTimersByTime(10 * PAUSE_MS);
    expect(await statusOf(client)).toBe(404);
    expect(server?.bytesRead).toBeGreaterThan(length);
  });

  it('given bodies that wait to be read, when the server closes, then it does not wait for them', async () => {
    await refuseMany();
    jest.useRealTimers();
    await app.close();
    expect(readToTheEnd()).toBe(0);
  });
});

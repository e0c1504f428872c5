import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

/**
 * What happens to a request. `lose answer`: the request arrives and is carried out, and the connection breaks before
 * the answer comes back. `lose request`: the connection breaks before the request arrives.
 */
export type Fate = 'pass' | 'lose request' | 'lose answer';

/** A proxy between a client and the database server that imitates failures of the network. */
export interface TcpProxy {
  /** The URL of the database through the proxy. */
  readonly url: string;
  /** How many connections were cut so far. */
  readonly cuts: number;
  /** How many connections were refused so far. */
  readonly refused: number;
  /** Decides on each request, by its first bytes; everything passes until this is set. */
  decide(fate: (request: Buffer) => Fate): void;
  /** Cuts every connection now and refuses new ones until `up`. */
  down(): void;
  /** Refuses new connections until `up`; existing ones stay. */
  refuse(): void;
  /** Refuses new connections while so many are open, until `up`. */
  limit(connections: number): void;
  /** Passes nothing on in either direction until `up`, as if the server were running but never answered. */
  hang(): void;
  up(): void;
  close(): Promise<void>;
}

/** @param rewrite changes the bytes of the server before the client gets them */
export async function startProxy(
  databaseUrl: string,
  rewrite: (answer: Buffer) => Buffer = (answer) => answer,
): Promise<TcpProxy> {
  const target = new URL(databaseUrl);
  const sockets = new Set<Socket>();
  let decide: (request: Buffer) => Fate = () => 'pass';
  let isDown = false;
  let isHanging = false;
  let most = Infinity;
  let open = 0;
  let refused = 0;
  let cuts = 0;

  const server = createServer((client) => {
    if (isDown || open >= most) {
      refused += 1;
      client.resetAndDestroy();
      return;
    }
    open += 1;
    client.once('close', () => {
      open -= 1;
    });
    const upstream = connect(Number(target.port || 5432), target.hostname);
    const cut = (): void => {
      client.destroy();
      upstream.destroy();
    };
    if (isHanging) for (const socket of [client, upstream]) socket.pause();
    let fate: Fate = 'pass';
    for (const socket of [client, upstream]) {
      socket.setNoDelay(true);
      sockets.add(socket);
      socket.on('error', cut);
      socket.on('close', () => {
        sockets.delete(socket);
        cut();
      });
    }
    client.on('data', (chunk) => {
      // The first chunk of a request names its prepared statement. Further chunks of the request have the same fate.
      if (fate === 'pass') fate = decide(chunk);
      if (fate !== 'lose request') upstream.write(chunk);
      else {
        cuts += 1;
        cut();
      }
    });
    upstream.on('data', (chunk) => {
      if (fate === 'pass') client.write(rewrite(chunk));
      else {
        cuts += 1;
        cut();
      }
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = new URL(databaseUrl);
  url.hostname = '127.0.0.1';
  url.port = String((server.address() as AddressInfo).port);

  const cutAll = (): void => {
    for (const socket of sockets) socket.destroy();
  };
  return {
    url: url.href,
    get cuts() {
      return cuts;
    },
    get refused() {
      return refused;
    },
    decide: (given) => {
      decide = given;
    },
    down: () => {
      isDown = true;
      cutAll();
    },
    refuse: () => {
      isDown = true;
    },
    limit: (connections) => {
      most = connections;
    },
    hang: () => {
      isHanging = true;
      for (const socket of sockets) socket.pause();
    },
    up: () => {
      isDown = false;
      isHanging = false;
      most = Infinity;
      for (const socket of sockets) socket.resume();
    },
    close: async () => {
      cutAll();
      server.close();
      await once(server, 'close');
    },
  };
}

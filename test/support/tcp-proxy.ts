import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

/**
 * What becomes of a request. `lose answer`: it arrives and is done, and the connection breaks before the answer comes
 * back. `lose request`: the connection breaks before it arrives.
 */
export type Fate = 'pass' | 'lose request' | 'lose answer';

/** Between a client and the server: what a network does at the worst moment. */
export interface TcpProxy {
  /** The database's URL, by way of the proxy. */
  readonly url: string;
  /** How many connections were cut so far. */
  readonly cuts: number;
  /** Decides on each request, by its first bytes; everything passes until this is set. */
  decide(fate: (request: Buffer) => Fate): void;
  /** Cuts every connection now and refuses new ones until `up`. */
  down(): void;
  /** Refuses new connections until `up`; those that are there stay. */
  refuse(): void;
  /** Passes nothing on until `up`, in no direction: the server is there, but never answers. */
  hang(): void;
  up(): void;
  close(): Promise<void>;
}

/** @param rewrite changes what the server says, before the client gets it. */
export async function startProxy(
  databaseUrl: string,
  rewrite: (answer: Buffer) => Buffer = (answer) => answer,
): Promise<TcpProxy> {
  const target = new URL(databaseUrl);
  const sockets = new Set<Socket>();
  let decide: (request: Buffer) => Fate = () => 'pass';
  let isDown = false;
  let isHanging = false;
  let cuts = 0;

  const server = createServer((client) => {
    if (isDown) {
      client.resetAndDestroy();
      return;
    }
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
      // The first piece of a request names its prepared statement; further pieces share its fate.
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
    hang: () => {
      isHanging = true;
      for (const socket of sockets) socket.pause();
    },
    up: () => {
      isDown = false;
      isHanging = false;
      for (const socket of sockets) socket.resume();
    },
    close: async () => {
      cutAll();
      server.close();
      await once(server, 'close');
    },
  };
}

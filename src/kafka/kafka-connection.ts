import { connect as connectPlain, isIP } from 'node:net';
import { connect as connectTls } from 'node:tls';
import type { ISocketFactory, Kafka, KafkaConfig } from 'kafkajs';
import { kafkajs } from './kafkajs.js';

/** How to reach the brokers. */
export interface KafkaSettings {
  /** `host:port` each. */
  readonly brokers: readonly string[];
  /** Shown in the brokers' logs and quotas. Default `colloquy`. */
  readonly clientId?: string | undefined;
  /** `true` for the system's certificate authorities, or PEM texts as in `tls.connect`. */
  readonly ssl?:
    | boolean
    | {
        readonly ca?: string | undefined;
        readonly cert?: string | undefined;
        readonly key?: string | undefined;
        readonly servername?: string | undefined;
        readonly rejectUnauthorized?: boolean | undefined;
      }
    | undefined;
  readonly sasl?:
    | {
        readonly mechanism: 'plain' | 'scram-sha-256' | 'scram-sha-512';
        readonly username: string;
        readonly password: string;
      }
    | undefined;
}

const CONNECTION_TIMEOUT_MS = 3_000;
/** kafkajs waits 30 s by default; a broker that is silent for this long is treated as gone. */
export const REQUEST_TIMEOUT_MS = 10_000;
/** Disconnecting waits for requests in flight, which a dead broker never answers. */
const DISCONNECT_LIMIT_MS = 2_000;

/** Opens sockets as kafkajs does, but without Nagle's algorithm, which would delay a single small message. */
const socketFactory: ISocketFactory = ({ host, port, ssl, onConnect }) => {
  const servername = isIP(host) === 0 ? { servername: host } : {};
  // The type says that `ssl` is always set; in fact it is null or absent without TLS.
  const tls = ssl as typeof ssl | null | undefined;
  const socket = tls
    ? connectTls({ host, port, ...servername, ...tls }, onConnect)
    : connectPlain({ host, port }, onConnect);
  socket.setKeepAlive(true, 60_000);
  socket.setNoDelay(true);
  return socket;
};

/** A client that has not connected yet. */
export function kafkaClient({ brokers, clientId, ssl, sasl }: KafkaSettings): Kafka {
  const { Kafka, logLevel } = kafkajs();
  return new Kafka({
    brokers: [...brokers],
    clientId: clientId ?? 'colloquy',
    ...(ssl !== undefined && { ssl: ssl === true ? {} : ssl }),
    ...(sasl && { sasl: { ...sasl } as NonNullable<KafkaConfig['sasl']> }),
    connectionTimeout: CONNECTION_TIMEOUT_MS,
    requestTimeout: REQUEST_TIMEOUT_MS,
    // Each retry takes the next broker of the list. Longer waits are left to the callers, who check first whether
    // publishing or consuming is still theirs to do.
    retry: { retries: Math.max(2, brokers.length), initialRetryTime: 100, maxRetryTime: 1_000 },
    socketFactory,
    // While a broker is away kafkajs would log several lines a second. Every error also reaches the callers.
    logLevel: logLevel.NOTHING,
    logCreator: () => () => undefined,
  });
}

/**
 * Waits for a disconnect, for a limited time because a dead broker never answers. It never rejects: the connection is
 * given up in any case, and the operating system closes its socket at the latest when the process ends.
 */
export async function disconnected(disconnect: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, DISCONNECT_LIMIT_MS);
  });
  // An error here says only that the connection was already broken, and whoever used the connection got that error
  // before.
  await Promise.race([disconnect.catch(() => undefined), limit]);
  clearTimeout(timer);
}

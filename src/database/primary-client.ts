import { Client, type ClientConfig } from 'pg';
import { type Host } from './hosts.js';

/** The server answers, and is not to be used: it is a standby, or a former primary. Another try may find the primary. */
export class NotPrimary extends Error {
  override readonly name = 'NotPrimary';
  /** That of PostgreSQL for a server that cannot be used for now. */
  readonly code = '57P03';
}

/** The primary as it was last found, by the hosts among which it was looked for. */
const primaries = new Map<string, Host>();

/**
 * A connection to the server that takes writes. Where several hosts are named, it is looked for among all of them at the
 * same time, so that one that does not answer holds up nobody, and remembered until a connection to it fails.
 *
 * A server tells by itself at the beginning of a connection whether it is a standby (`in_hot_standby`, since PostgreSQL
 * 14), so nothing has to be asked.
 */
export class PrimaryClient extends Client {
  /** @param hosts among which the primary is looked for; none: the one of the settings is to be it */
  constructor(
    private readonly config: ClientConfig,
    private readonly hosts: readonly Host[],
  ) {
    super(config);
    // A connection that breaks between its beginning and the moment when a pool listens to it would end the process.
    this.on('error', () => undefined);
  }

  override connect(): Promise<this>;
  override connect(callback: (error: Error) => void): void;
  override connect(callback?: (error: Error) => void): Promise<this> | undefined {
    const connected = this.connectToPrimary().then(() => this);
    if (!callback) return connected;
    const told = callback as (error?: Error) => void;
    connected.then(
      () => {
        told();
      },
      (error: unknown) => {
        told(error as Error);
      },
    );
    return undefined;
  }

  private async connectToPrimary(): Promise<void> {
    if (this.hosts.length === 0) {
      await this.connectWhereItLeads();
      return;
    }
    const key = this.hosts.map(({ host, port }) => `${host}:${port}`).join();
    const host = primaries.get(key) ?? (await this.find());
    try {
      leadTo(this, host);
      await this.connectWhereItLeads();
      primaries.set(key, host);
    } catch (error) {
      primaries.delete(key);
      throw error;
    }
  }

  /** @throws NotPrimary */
  private async connectWhereItLeads(): Promise<void> {
    const isStandby = watchStandby(this);
    await super.connect();
    if (!isStandby()) return;
    await this.end();
    throw new NotPrimary(`the server at ${this.host}:${this.port} is a standby`);
  }

  /** The first host that turns out to be the primary. @throws the error of one of them when none is */
  private async find(): Promise<Host> {
    const asked = this.hosts.map(async (host) => {
      const probe = new PrimaryClient(this.config, []);
      leadTo(probe, host);
      try {
        await probe.connect();
        return host;
      } finally {
        // It may hang, and nobody needs its answer.
        probe.end().catch(() => undefined);
      }
    });
    try {
      return await Promise.any(asked);
    } catch (error) {
      const errors: unknown[] = error instanceof AggregateError ? error.errors : [error];
      throw errors.find((one) => !(one instanceof NotPrimary)) ?? errors[0];
    }
  }
}

/** The driver takes one host when a client is made, and looks at these fields when it connects. */
function leadTo(client: Client, host: Host): void {
  Object.assign(client, host);
  Object.assign((client as unknown as { connectionParameters: object }).connectionParameters, host);
}

/** Listens to what the server reports of itself while the connection begins. */
function watchStandby(client: Client): () => boolean {
  let isStandby = false;
  const { connection } = client as unknown as { connection: NodeJS.EventEmitter };
  connection.on(
    'parameterStatus',
    ({ parameterName, parameterValue }: Record<'parameterName' | 'parameterValue', string>) => {
      if (parameterName === 'in_hot_standby') isStandby = parameterValue === 'on';
    },
  );
  return () => isStandby;
}

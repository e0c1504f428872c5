/** Redis holds nothing that the database could not give: whoever uses it turns to the database without waiting long. */
const ANSWER_MS = 500;
const CONNECT_MS = 2_000;
/** Time between a failure and the next try to connect. */
const RETRY_MS = 1_000;

/** Not connected yet. */
async function createClient(url: string) {
  // Loading it takes a while, and few installations have Redis.
  const redis = await import('@redis/client');
  const client = redis.createClient({
    url,
    name: 'colloquy',
    disableOfflineQueue: true,
    // Its own way of connecting again would keep a process alive that has nothing else to do.
    socket: { reconnectStrategy: false },
  });
  client.unref();
  return client;
}

/** The client's own limits end once a connection is made, and once a command was sent. */
async function inTime<T>(answer: Promise<T>, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`Redis did not answer within ${ms} ms`));
    }, ms);
  });
  try {
    return await Promise.race([answer, late]);
  } finally {
    clearTimeout(timer);
  }
}

type Client = Awaited<ReturnType<typeof createClient>>;

interface Connected {
  readonly client: Client;
  /** A number that no connection before had. */
  readonly epoch: number;
}

/**
 * The connection to Redis. It is opened when it is first used, and again by later uses when it was lost. It does not
 * keep the process alive.
 */
export class RedisLink {
  private connected: Connected | undefined;
  private connecting: Promise<void> | undefined;
  private retryAt = 0;
  private epochs = 0;
  private isClosed = false;
  private readonly listeners = new Map<string, Set<() => void>>();

  /** @param onFailure receives an error after which Redis is left alone for a moment */
  constructor(
    private readonly url: string,
    private readonly onFailure: (error: unknown) => void,
  ) {}

  /**
   * Number of the present connection; undefined when there is none. What was written by another connection may be gone:
   * Redis may have been started anew in between.
   */
  get epoch(): number | undefined {
    this.open();
    return this.connected?.epoch;
  }

  /** Begins to connect, for whoever must not find it unconnected at the first use. */
  open(): void {
    if (!this.connected) this.connectSoon();
  }

  /** Runs commands. @returns undefined when Redis is away, or does not answer in time: they may have had their effect */
  async run<T>(commands: (client: Client) => Promise<T>): Promise<T | undefined> {
    if (this.epoch === undefined || !this.connected) return undefined;
    const used = this.connected;
    try {
      return await inTime(commands(used.client), ANSWER_MS);
    } catch (error) {
      this.lose(used, error);
      return undefined;
    }
  }

  /** Calls the listener for each message of a channel from now on, as long as there is a connection. */
  listen(channel: string, listener: () => void): () => void {
    const known = this.listeners.get(channel);
    if (known) known.add(listener);
    else {
      this.listeners.set(channel, new Set([listener]));
      void this.run((client) => client.subscribe(channel, this.told));
    }
    return () => {
      const left = this.listeners.get(channel);
      left?.delete(listener);
      if (left?.size !== 0) return;
      this.listeners.delete(channel);
      if (this.connected) void this.run((client) => client.unsubscribe(channel));
    };
  }

  async close(): Promise<void> {
    this.isClosed = true;
    await this.connecting;
    this.connected?.client.destroy();
    this.connected = undefined;
  }

  private readonly told = (_message: string, channel: string): void => {
    for (const listener of this.listeners.get(channel) ?? []) listener();
  };

  private connectSoon(): void {
    if (this.isClosed || Date.now() < this.retryAt) return;
    this.connecting ??= this.connect().finally(() => {
      this.connecting = undefined;
    });
  }

  private async connect(): Promise<void> {
    const client = await createClient(this.url);
    this.epochs += 1;
    const connected = { client, epoch: this.epochs };
    client.on('error', (error: unknown) => {
      this.lose(connected, error);
    });
    client.on('end', () => {
      this.lose(connected, new Error('Redis has ended the connection'));
    });
    try {
      await inTime(this.prepare(client), CONNECT_MS);
      if (!this.isClosed && client.isReady) this.connected = connected;
      else client.destroy();
    } catch (error) {
      this.retryAt = Date.now() + RETRY_MS;
      this.onFailure(error);
      if (client.isOpen) client.destroy();
    }
  }

  private async prepare(client: Client): Promise<void> {
    await client.connect();
    for (const channel of this.listeners.keys()) await client.subscribe(channel, this.told);
  }

  private lose(lost: Connected, error: unknown): void {
    if (this.connected !== lost) return;
    this.connected = undefined;
    this.retryAt = Date.now() + RETRY_MS;
    this.onFailure(error);
    if (lost.client.isOpen) lost.client.destroy();
  }
}
